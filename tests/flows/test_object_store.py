"""The command line at a root on an object store: a second machine finds everything and downloads what it needs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from paraclip.flows.cli import run_cli
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from tests.flows.test_cli import STAGES

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A root of its own, seen from the machine `one`."""
    bucket = uuid.uuid4().hex
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "one"))
    yield f"memory://{bucket}/root"
    if fsspec.filesystem("memory").exists(f"/{bucket}"):
        fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


@pytest.fixture
def tell(url: str, capsys: Capture) -> Callable[..., Any]:
    """Runs a command at the root and reads its one JSON document."""

    def told(arguments: Sequence[str], code: int = 0) -> Any:
        capsys.readouterr()
        assert run_cli([*arguments, "--root", url, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return told


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Goes on as another machine."""
    return lambda: monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "two"))


def here(url: str) -> set[str]:
    """The stages whose artifacts were downloaded."""
    return {path.parent.name for path in (open_store(url).root / "artifacts").glob("*/*")}


def test_a_second_machine_has_nothing_to_do(
    finished_run: Callable[..., Any], url: str, second: Callable[[], None], capsys: Capture
) -> None:
    run = finished_run(f"run.root={url}")
    second()
    at = ["-c", str(run.config), "--set", f"run.root={url}"]
    assert run_cli(["plan", *at, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["state"] for stage in plan["stages"]] == ["cached"] * len(STAGES)
    assert here(url) == set()
    assert run_cli(["run", *at, "--require-work", "--json"]) == 3
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["summary"]["deltas"] == {"rewordings": {"ao@10": 2.5}}
    assert Path(outcome["report"]).read_text() == "<title>made</title>"
    # A run that only shows its outcome needs the outcome's artifacts and no other.
    assert here(url) == {"evaluate", "report"}
    assert {row["stage"] for row in outcome["stages"] if row["path"].startswith("memory://")} == {*STAGES} - here(url)


def test_artifacts_commands(
    finished_run: Callable[..., Any], url: str, second: Callable[[], None], tell: Callable[..., Any], tmp_path: Path
) -> None:
    run = finished_run(f"run.root={url}")
    assert run_cli(["run", "-c", str(run.config), "--set", f"run.root={url}"]) == 0  # sets the channel
    second()
    listed = tell(["artifacts", "ls"])
    assert {artifact["stage"] for artifact in listed["artifacts"]} == set(STAGES)
    assert all(artifact["path"].startswith(f"{url}/artifacts/") for artifact in listed["artifacts"])
    assert listed["channels"]["made"]["fingerprint"] == run.artifacts["finetune"].fingerprint
    assert tell(["artifacts", "show", "made"])["stage"] == "finetune"
    assert tell(["artifacts", "verify"]) == {"checked": len(STAGES), "damaged": []}
    assert tell(["artifacts", "gc", "--keep-days", "0"])["items"] == []
    assert here(url) == set()
    assert tell(["export", "made", str(tmp_path / "model")])["files"] == ["open_clip_config.json"]
    assert here(url) == {"finetune"}


def test_gc_deletes_at_the_store(finished_run: Callable[..., Any], url: str, tell: Callable[..., Any]) -> None:
    run = finished_run(f"run.root={url}")
    assert run_cli(["run", "-c", str(run.config), "--set", f"run.root={url}"]) == 0
    finished_run(f"run.root={url}", "finetune.epochs=5")
    with pytest.raises(KeyboardInterrupt), open_store(url).writing("ingest", "a" * 32) as work:
        (work.scratch / "state").write_text("7")
        raise KeyboardInterrupt
    deleted = tell(["artifacts", "gc", "--keep-days", "0", "--unfinished", "--yes"])["items"]
    assert sorted(item["stage"] for item in deleted) == ["evaluate", "finetune", "ingest", "report"]
    listed = tell(["artifacts", "ls"])
    assert len(listed["artifacts"]) == len(STAGES) and listed["unfinished"] == []
