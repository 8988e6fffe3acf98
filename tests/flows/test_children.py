"""Stages in deployments of their own: which child run a retried parent finds again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paraclip_core.config import Settings
from paraclip_core.errors import StageError
from paraclip_core.settings import load_settings

pytestmark = pytest.mark.slow


class Asked(Exception):
    """Raised in place of starting a run."""


def test_a_retry_finds_its_child_again_unless_an_input_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import children

    def refuse(deployment: str, *, idempotency_key: str, **_: Any) -> None:
        raise Asked(idempotency_key)

    monkeypatch.setattr(children, "run_deployment", refuse)
    captions = tmp_path / "captions.csv"
    settings = load_settings(
        None, [f"run.root={tmp_path / 'root'}", f"data.root={tmp_path}", "data.sources.0.path=captions.csv"]
    )

    def key(settings: Settings) -> str:
        with pytest.raises(Asked) as asked:
            children.run_child("ingest", settings)
        return str(asked.value)

    captions.write_text("caption\na dog on a beach\n")
    first = key(settings)
    assert key(settings) == first
    captions.write_text("caption\na dog on a beach\na cat on a mat\n")
    assert key(settings) != first


def test_a_server_without_deployments_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.exceptions import ObjectNotFound

    from flows import children

    def unknown(*_: Any, **__: Any) -> None:
        raise ObjectNotFound(Exception("404"))

    monkeypatch.setattr(children, "run_deployment", unknown)
    settings = load_settings(None, [f"run.root={tmp_path}", "data.scenes={}", "data.sources.0.path=captions.jsonl"])
    with pytest.raises(StageError, match=r"no deployment scenes/scenes.*paraclip serve"):
        children.run_child("scenes", settings)
