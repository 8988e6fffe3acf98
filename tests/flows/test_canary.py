"""Secrets get nowhere: a run that fails and one that goes on, and then every byte that they left is looked through."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer, status
from tests.kit.prefect_server import _drain
from tests.kit.tiny_run import served, written
from tests.kit.waiting import eventually

# The last is of a library of Prefect's.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect"),
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
]

KEY, PASSWORD = "sk-canary-3f9c2a7e51", "canary-of-a-webhook-77"
BUCKET = "canary-of-a-bucket-12"
REFUSED = "Incorrect API key provided"
CONTROL = "run-that-is-found"
"""What is no secret, and so must be found by the same search."""


def database() -> list[Path]:
    """The server's database, with what is not yet in its main file."""
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    assert url is not None
    path = Path(url.get_secret_value().partition("///")[2])
    return sorted(path.parent.glob(f"{path.name}*"))


def holding(text: str, places: list[Path]) -> set[str]:
    """Names of the files with this text in them."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return {file.name for file in files if file.is_file() and text.encode() in file.read_bytes()}


def test_no_secret_is_left_anywhere(
    tmp_path: Path,
    openai_server: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefect.blocks.notifications import SlackWebhook

    from paraclip.flows.stages import STAGE_FLOWS

    caplog.set_level(logging.DEBUG, "paraclip_core")
    monkeypatch.setenv("CANARY_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", BUCKET)
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    SlackWebhook(url=SecretStr(f"https://hooks.slack.com/services/{PASSWORD}")).save("paraclip-alerts", overwrite=True)
    paraphrase = served(openai_server.url)
    paraphrase["openai"] |= {"api_key_env": "CANARY_KEY", "retries": 0}
    (tmp_path / "captions.csv").write_text("image,caption\n1.png,a red ball on a table\n")
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    data = {"root": str(tmp_path), "sources": [{"path": "captions.csv", "images": "."}]}
    run = {"root": str(tmp_path / "root")}
    settings = parse_settings({"name": CONTROL, "data": data, "paraphrase": paraphrase | {"fraction": 1.0}, "run": run})
    STAGE_FLOWS["ingest"](settings=settings)

    # A server that refuses the key says which.
    openai_server.answer = lambda _: status(401, f"{REFUSED}: {KEY}")
    state: Any = STAGE_FLOWS["paraphrase_1"](settings=settings, return_state=True)
    assert state.is_failed() and REFUSED in (state.message or "") and KEY not in (state.message or "")
    openai_server.answer = written
    STAGE_FLOWS["paraphrase_1"](settings=settings)
    assert openai_server.keys == {f"Bearer {KEY}"}

    root = tmp_path / "root"
    eventually(lambda: holding(REFUSED, database()), "the server has no log of it")
    _drain()
    assert holding(REFUSED, [root]) and holding(CONTROL, database()) and holding("CANARY_KEY", [root])
    for secret in (KEY, PASSWORD, BUCKET):
        assert not holding(secret, [root, *database()])
        assert secret not in caplog.text
