"""The command line at a root on an object store: a second machine finds everything and downloads what it needs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from tests.flows.test_cli import STAGES


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A root of its own, seen from the machine `one`."""
    bucket = uuid.uuid4().hex
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "one"))
    yield f"memory://{bucket}/root"
    if fsspec.filesystem("memory").exists(f"/{bucket}"):
        fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Goes on as another machine."""
    return lambda: monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "two"))


def here(url: str) -> set[str]:
    """The stages whose artifacts were downloaded."""
    return {path.parent.name for path in (open_store(url).root / "artifacts").glob("*/*")}


def test_a_second_machine_has_nothing_to_do(
    finished_run: Callable[..., Any], url: str, second: Callable[[], None], cli: Any
) -> None:
    run = finished_run(f"run.root={url}")
    second()
    at = ["-c", str(run.config), "--set", f"run.root={url}"]
    plan = cli.json(["plan", *at])
    assert [stage["state"] for stage in plan["stages"]] == ["cached"] * len(STAGES)
    assert here(url) == set()
    outcome = cli.json(["run", *at, "--require-work"], code=3)
    assert outcome["summary"]["deltas"] == {"rewordings": {"ao@10": 2.5}}
    assert Path(outcome["report"]).read_text() == "<title>made</title>"
    # A run that only shows its outcome needs the outcome's artifacts and no other.
    assert here(url) == {"evaluate", "report"}
    assert {row["stage"] for row in outcome["stages"] if row["path"].startswith("memory://")} == {*STAGES} - here(url)
