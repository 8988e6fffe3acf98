"""Terms that hold a tower near its base."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.models import freeze_image_tower
from paraclip_core.training.distributed import ALONE
from paraclip_core.training.forgetting import Anchor
from paraclip_core.training.forward import prepare
from paraclip_core.training.optimiser import trained_parameters
from paraclip_core.training.trainer import train


def distances(tiny: ModuleType, folder: Path, **changed: float) -> tuple[float, float]:
    """How far training moved the captions' embeddings (mean of 1 - cos) and the weights (norm)."""
    job, base = tiny.tiny_job(folder, **changed), tiny.tiny_clip()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    train(job)
    texts = job.rows.texts["caption"]
    with torch.no_grad():
        cosines = (encode_ragged(job.clip, texts) * encode_ragged(base, texts)).sum(1)
    moved = [float((value - before[name]).norm()) for name, value in job.clip.model.state_dict().items()]
    return float((1 - cosines).mean()), float(np.linalg.norm(moved))


def test_each_term_holds_what_it_is_for(tiny: ModuleType, tmp_path: Path) -> None:
    free = distances(tiny, tmp_path / "free")
    distilled = distances(tiny, tmp_path / "distil", distil=100.0)
    weighted = distances(tiny, tmp_path / "l2", l2_sp=10.0)
    last = [json.loads(line) for line in (tmp_path / "l2/training_log.jsonl").read_text().splitlines()][-2]
    assert last["loss"] == pytest.approx(sum(last["losses"].values()) + 9 * last["losses"]["l2_sp"], rel=1e-4)
    assert distilled[0] < 0.5 * free[0]
    assert weighted[1] < 0.8 * free[1]


def test_values_and_gradients_are_those_of_the_formulas(tiny: ModuleType) -> None:
    clip = tiny.tiny_clip()
    freeze_image_tower(clip)
    rows, features = tiny.tiny_rows()
    prepared = prepare(rows.take(np.arange(8), ("caption", "paraphrase_1")), features, None)
    clip.model.train()
    anchor = Anchor(clip, 1.0, 0.3)
    assert anchor._tower is not None and not anchor._tower.model.training, "dropout would move what it holds on to"
    clip.model.eval()
    parameters = trained_parameters(clip.model)
    embeddings = prepared.embeddings(encode_ragged(clip, prepared.tokens))
    # The base itself is nowhere away from itself.
    assert float(anchor.distance(prepared, embeddings, "fp32", 0, ALONE).detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(anchor.pull_back(parameters)) == 0.0
    clip.model.zero_grad()
    moved: Tensor = clip.model.get_parameter("text_projection")
    with torch.no_grad():
        moved.add_(0.5)
    assert float(anchor.pull_back(parameters)) == pytest.approx(0.5 * moved.numel() * 0.25, rel=1e-5)
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad, torch.full_like(moved, 0.3 * 0.5))
    embeddings = prepared.embeddings(encode_ragged(clip, prepared.tokens))
    expected = 1 - (embeddings["caption"] * encode_ragged(tiny.tiny_clip(), prepared.batch.texts["caption"])).sum(1)
    found = anchor.distance(prepared, embeddings, "fp32", 0, ALONE)
    assert float(found.detach()) == pytest.approx(float(expected.mean().detach()), rel=1e-5)
