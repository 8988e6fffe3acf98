"""Rank consistency against a loop that follows its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from paraclip_core.config import LossWeights, RankOptions
from paraclip_core.training import ranks
from paraclip_core.training.alpha import AO, RECALL, ValidationSet, measure
from paraclip_core.training.losses import TEXTS, named_pairs
from paraclip_core.training.ranks import gallery_of, rank_divergence
from paraclip_core.training.trainer import train


def unit(rows: int, seed: int, dim: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).to(dtype), dim=-1)


def by_loop(wordings: list[Tensor], base: Tensor, gallery: Tensor, temperature: float) -> float:
    def shares(text: Tensor) -> list[float]:
        powers = [math.exp(temperature * float(text.detach().double() @ image.double())) for image in gallery]
        return [power / sum(powers) for power in powers]

    divergences = []
    for wording in wordings:
        for row, judge in zip(wording, base, strict=True):
            divergences.append(sum(p * math.log(p / q) for p, q in zip(shares(judge), shares(row), strict=True)))
    return sum(divergences) / len(divergences)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 7), images=st.integers(1, 9), temperature=st.floats(0.5, 60), cells=st.sampled_from((1, 16, 99))
)
def test_value_and_gradient_are_those_of_the_definition(rows: int, images: int, temperature: float, cells: int) -> None:
    base, gallery = unit(rows, 0), unit(images, 1)
    wordings = [unit(rows, seed).requires_grad_() for seed in (2, 3, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "CELLS", cells)
        ours = rank_divergence(wordings, base, gallery, temperature)
    assert float(ours.detach()) == pytest.approx(by_loop(wordings, base, gallery, temperature), rel=1e-4, abs=1e-5)
    (3 * ours).backward()
    again = [wording.detach().requires_grad_() for wording in wordings]
    targets = torch.log_softmax(temperature * base @ gallery.T, 1)
    plain = [
        functional.kl_div(torch.log_softmax(temperature * wording @ gallery.T, 1), targets, reduction="batchmean",
                          log_target=True)
        for wording in again
    ]  # fmt: skip
    (sum(plain) / 3 * 3).backward()  # type: ignore[union-attr]
    for first, second in zip(wordings, again, strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_value() -> None:
    base, gallery = unit(4, 0, dtype=torch.float64), unit(5, 1, dtype=torch.float64)
    wordings = [unit(4, seed, dtype=torch.float64).requires_grad_() for seed in (2, 3)]
    assert torch.autograd.gradcheck(lambda *texts: rank_divergence(texts, base, gallery, 7.0), wordings)


def test_the_base_agrees_with_itself() -> None:
    base = unit(5, 0)
    assert float(rank_divergence([base, base.clone()], base, unit(9, 1), 50.0)) == pytest.approx(0.0, abs=1e-5)


def test_all_similarities_are_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    monkeypatch.setattr(ranks, "CELLS", 40_000)
    base, gallery, wording = unit(900, 0), unit(800, 1), unit(900, 2).requires_grad_()
    with Watch():
        rank_divergence([wording], base, gallery, 50.0).backward()
    assert 800 * 6 < largest <= 40_000


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**63), step=st.integers(0, 10**7), bank=st.integers(0, 50))
def test_a_gallery_follows_from_seed_and_step(seed: int, step: int, bank: int) -> None:
    image_rows, batch = np.array([3, 5, 5, 8, 900, 41], np.int64), np.array([8, 3, 8], np.int64)
    found = gallery_of(image_rows, bank, seed)(step, batch)
    assert found.tolist() == sorted(set(found.tolist())) and found.dtype == np.int64
    assert set(batch.tolist()) <= set(found.tolist()) <= set(image_rows.tolist())
    assert len(found) <= 2 + bank
    assert np.array_equal(found, gallery_of(image_rows, bank, seed)(step, batch[::-1]))


def test_banks_of_other_steps_and_seeds_are_others() -> None:
    image_rows, batch = np.arange(10_000), np.zeros(1, np.int64)
    banks = [gallery_of(image_rows, 100, seed)(step, batch) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert all(len(np.intersect1d(first, second)) < 20 for first, second in (banks[:2], banks[1:], banks[::2]))
    # Every image is drawn as often as others.
    drawn = np.concatenate([gallery_of(np.arange(20), 100, 0)(step, batch) for step in range(200)])
    assert len(set(drawn.tolist())) == 20


def test_training_moves_wordings_to_the_base_s_ranking(tiny: ModuleType, tmp_path: Path) -> None:
    def trained(name: str, **changed: object) -> tuple[dict[str, float], float]:
        weights = LossWeights(image_paraphrase_2=0, paraphrase_1_paraphrase_2=0, caption_paraphrase_1=0.01)
        options = {"epochs": 30.0, "batch_size": 20}
        job = tiny.tiny_job(tmp_path / name, pairs=named_pairs(weights), keep_best=None, options=options, **changed)
        texts, rows = job.rows.texts, job.rows.image_rows
        held_out = ValidationSet(job.features, texts[TEXTS[0]], rows, texts[TEXTS[0]], texts[TEXTS[2]], rows)
        train(job)
        last = json.loads((tmp_path / name / "training_log.jsonl").read_text().splitlines()[-2])
        return measure(job.clip, held_out), last["losses"].get("ranks", math.nan)

    without, _ = trained("without")
    taught, loss = trained("taught", ranks=RankOptions(weight=1, bank=15))
    first = json.loads((tmp_path / "taught" / "training_log.jsonl").read_text().splitlines()[0])["losses"]["ranks"]
    assert loss < 0.5 * first
    assert taught[AO] > without[AO] + 5
    assert RECALL in taught
