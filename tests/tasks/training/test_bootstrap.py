"""The bootstrap stage on images that are vectors, in one process and in two."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.stages.training import BOOTSTRAP
from paraclip.tasks.training import bodies
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import image_tower_hash
from paraclip_core.errors import ArtifactError, ModelError

RunStage = Callable[..., Artifact]


def log_of(artifact: Artifact) -> list[dict]:
    lines = [json.loads(line) for line in (artifact.path / "training_log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_it_learns_and_its_release_loads_in_open_clip(inputs: dict[str, Artifact], tower: str) -> None:
    artifact = inputs["bootstrap"]
    lines = log_of(artifact)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"] and set(lines[0]["losses"]) == {"image~caption"}
    metrics = artifact.manifest.metrics
    assert metrics["without_image"] == 2
    assert metrics["rows"] + metrics["held_out"] + metrics["without_image"] == metrics["read"] == 146
    assert metrics["validation_images"] >= 1 and metrics["validation_text_to_image_recall@10"] >= 0
    assert image_tower_hash(load_clip(str(artifact.path / "release"))) == tower == metrics["image_tower_hash"]
    open_clip.create_model_and_transforms(f"local-dir:{artifact.path / 'release'}")
    assert tower in (artifact.path / "release/README.md").read_text()


def test_one_image_that_is_held_out_chooses_no_epoch(
    run_stage: RunStage, sources: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BASE_HELD_OUT", 1e-9)
    metrics = run_stage(BOOTSTRAP, sources, bootstrap={"epochs": 2.0}).manifest.metrics
    assert metrics["validation_images"] == 1
    assert metrics["best_step"] == metrics["steps"] > 2


def test_features_of_another_model_are_refused(run_stage: RunStage, sources: dict[str, Artifact]) -> None:
    with pytest.raises(ModelError, match="run the features stage for this model"):
        run_stage(BOOTSTRAP, sources, model={"embed_dim": 16})


def test_two_processes_make_the_model_that_one_makes(
    run_stage: RunStage, sources: dict[str, Artifact], inputs: dict[str, Artifact]
) -> None:
    alone, together = inputs["bootstrap"], run_stage(BOOTSTRAP, sources, run={"processes": 2})
    assert [line["loss"] for line in log_of(together)] == pytest.approx(
        [line["loss"] for line in log_of(alone)], rel=1e-3
    )
    assert together.manifest.metrics["best_step"] > 0
    weights = [load_file(artifact.path / "release/open_clip_model.safetensors") for artifact in (alone, together)]
    moved = weights[0]["token_embedding.weight"] - weights[1]["token_embedding.weight"]
    assert float(moved.abs().max()) < 1e-2
    assert all(torch.isfinite(value).all() for value in weights[1].values())


def test_what_a_process_raises_is_raised_by_the_stage(
    run_stage: RunStage, sources: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said where there is room, though the disk of the root is full."""

    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/rows.bin")

    def launcher(config: object, program: str) -> Callable[..., None]:
        def launch(*arguments: str) -> None:
            assert bodies._main(Path(arguments[-1])) == 1
            raise ChildFailedError("train", {1: ProcessFailure(1, 7, 1, "nowhere")})

        return launch

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(bodies, "die_with", lambda parent: None)
    monkeypatch.setattr(bodies, "_take_part", failing)
    monkeypatch.setattr(bodies, "elastic_launch", launcher)
    with pytest.raises(ArtifactError, match=r"no space left while writing /full/rows\.bin"):
        run_stage(BOOTSTRAP, sources, run={"processes": 2})
