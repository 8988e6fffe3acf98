"""One stage of a run: found or made, here or in a child process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.errors import ArtifactError, ConfigError


def run(name: str, root: Path, **changes: Any) -> Artifact:
    from fake_stages import STAGES, settings_at  # pyright: ignore[reportMissingImports]

    return run_stage(name, Run(settings_at(root, **changes), stages=STAGES))


def test_a_finished_stage_is_found_not_made_again(tmp_path: Path) -> None:
    first = run("first", tmp_path)
    changed = (first.path / "manifest.json").stat().st_mtime_ns
    assert run("first", tmp_path).fingerprint == first.fingerprint
    assert (first.path / "manifest.json").stat().st_mtime_ns == changed


def test_inputs_come_first_and_are_handed_on(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run first first"):
        run("second", tmp_path)
    first = run("first", tmp_path)
    second = run("second", tmp_path)
    assert second.manifest.inputs == {"first": first.fingerprint}
    assert (second.path / "made.txt").read_text() == "xx"


def test_a_stage_that_needs_no_isolation_runs_here(tmp_path: Path) -> None:
    assert run("here", tmp_path).manifest.metrics["pid"] == os.getpid()
    assert run("first", tmp_path).manifest.metrics["pid"] != os.getpid()


def test_an_unknown_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no stage 'third'; it has first, second"):
        run("third", tmp_path)


def test_finished_artifacts_and_edited_ones(tmp_path: Path) -> None:
    from fake_stages import STAGES, settings_at  # pyright: ignore[reportMissingImports]

    here = Run(settings_at(tmp_path), stages=STAGES)
    assert here.artifacts() == {}
    made = run("first", tmp_path)
    assert list(here.artifacts()) == ["first"]
    (made.path / "made.txt").write_text("edited")
    with pytest.raises(ArtifactError, match="damaged"):
        here.artifacts()
