"""A stage that trains in two processes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.tasks.run.status import read_failure
from paraclip.tasks.stages.training import BOOTSTRAP
from paraclip.tasks.training import bodies
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, TrainingError
from paraclip_core.training.trainer import CheckpointFolder

RunStage = Callable[..., Artifact]


@pytest.fixture
def two(settings: Settings) -> Settings:
    """The small run in two processes."""
    return settings.model_copy(update={"run": settings.run.model_copy(update={"processes": 2})})


def test_two_processes_make_the_model_that_one_makes(
    run_stage: RunStage, sources: dict[str, Artifact], two: Settings
) -> None:
    alone, together = run_stage(BOOTSTRAP, sources), run_stage(BOOTSTRAP, sources, "2" * 32, two)
    logs = [
        [json.loads(line) for line in (made.path / "training_log.jsonl").read_text().splitlines()]
        for made in (alone, together)
    ]
    assert [line["loss"] for line in logs[1] if "loss" in line] == pytest.approx(
        [line["loss"] for line in logs[0] if "loss" in line], rel=1e-3
    )
    assert together.manifest.metrics["best_step"] > 0
    weights = [load_file(made.path / "release/open_clip_model.safetensors") for made in (alone, together)]
    moved = weights[0]["token_embedding.weight"] - weights[1]["token_embedding.weight"]
    assert float(moved.abs().max()) < 1e-2
    assert all(torch.isfinite(value).all() for value in weights[1].values())


def test_what_a_process_raises_is_raised_by_the_stage(
    run_stage: RunStage, sources: dict[str, Artifact], two: Settings, store: ArtifactStore
) -> None:
    folder = store.root / "work/bootstrap" / ("3" * 32) / "scratch/checkpoints"
    CheckpointFolder(folder, "another run").save({"step": 1}, {"w": torch.zeros(1)})
    with pytest.raises(TrainingError, match="belongs to another run"):
        run_stage(BOOTSTRAP, sources, "3" * 32, two)


def test_a_process_says_that_the_disk_is_full_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/rows.bin")

    monkeypatch.setattr(bodies, "die_with", lambda parent: None)
    monkeypatch.setattr(bodies, "_take_part", failing)
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "request.json").write_text(json.dumps({"parent": 1, "statuses": str(tmp_path / "elsewhere")}))
    (tmp_path / "elsewhere").mkdir()
    assert bodies._main(tmp_path / "request.json") == 1
    found = read_failure(tmp_path / "elsewhere/rank-1.json", TrainingError)
    assert isinstance(found, ArtifactError) and "no space left while writing /full/rows.bin" in str(found)
