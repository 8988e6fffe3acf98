"""The stage of the built-in base on images that are vectors, trained in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable

import open_clip
import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.stages.training import BUILT_IN_BASE
from paraclip.tasks.training import bodies
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import image_encoder_hash
from paraclip_core.errors import ModelError

RunStage = Callable[..., Artifact]


def log_of(artifact: Artifact) -> list[dict]:
    lines = [json.loads(line) for line in (artifact.path / "training_log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_it_learns_and_its_release_loads_in_open_clip(inputs: dict[str, Artifact], encoder: str) -> None:
    artifact = inputs["built_in_base"]
    lines = log_of(artifact)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"] and set(lines[0]["losses"]) == {"image~caption"}
    metrics = artifact.manifest.metrics
    assert metrics["without_image"] == 2
    assert metrics["rows"] + metrics["held_out"] + metrics["without_image"] == metrics["read"] == 146
    assert metrics["validation_images"] >= 1 and metrics["validation_text_to_image_recall@10"] >= 0
    assert image_encoder_hash(load_clip(str(artifact.path / "release"))) == encoder == metrics["image_encoder_hash"]
    open_clip.create_model_and_transforms(f"local-dir:{artifact.path / 'release'}")
    assert encoder in (artifact.path / "release/README.md").read_text()


def test_one_image_that_is_held_out_chooses_no_epoch(
    run_stage: RunStage, sources: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "base_held_out", lambda settings: 1e-9)
    metrics = run_stage(BUILT_IN_BASE, sources, built_in_base={"epochs": 2.0}).manifest.metrics
    assert metrics["validation_images"] == 1
    assert metrics["best_step"] == metrics["steps"] > 2


def test_features_of_another_model_are_refused(run_stage: RunStage, sources: dict[str, Artifact]) -> None:
    with pytest.raises(ModelError, match="run the features stage for this model"):
        run_stage(BUILT_IN_BASE, sources, model={"embed_dim": 16})
