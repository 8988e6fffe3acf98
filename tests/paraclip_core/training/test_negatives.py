"""Hard negatives: the loss, its gradient by caching, and the rules."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.model import freeze_image_tower
from paraclip_core.config import FinetuneOptions, NegativeOptions, meaning
from paraclip_core.training.batches import Prepared, negatives_of, prepare
from paraclip_core.training.losses import Objective, named_pairs
from paraclip_core.training.negatives import negative_loss, rule_negative, says_something_else
from paraclip_core.training.optimizer import trained_parameters
from paraclip_core.training.trainer import train


def unit(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return functional.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)).to(dtype), dim=-1)


def test_the_loss_is_the_softmax_over_caption_and_negative() -> None:
    images, captions, negatives = unit(5, 0), unit(5, 1).requires_grad_(), unit(5, 2).requires_grad_()
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    logits = [[7 * float(v @ c.detach()), 7 * float(v @ n.detach())] for v, c, n in zip(images, captions, negatives)]  # noqa: B905
    expected = sum(-math.log(math.exp(c) / (math.exp(c) + math.exp(n))) for c, n in logits) / 5
    assert float(negative_loss(images, captions, negatives, scale).detach()) == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda *some: negative_loss(images, *some), (captions, negatives, scale))
    same = unit(5, 1)
    assert float(negative_loss(images, same, same, scale.detach())) == pytest.approx(math.log(2))


def batch(tiny: ModuleType, step: int = 0) -> tuple[Any, Prepared]:
    job = tiny.tiny_job(Path(), negatives={"weight": 0.7, "rows": 7})
    freeze_image_tower(job.clip)
    rows = job.rows.take(np.arange(12), tiny.KINDS)
    negatives = negatives_of(job.negative_rows, 7, seed=3)(step)
    return job, prepare(rows, job.features, job.image_keys, None, negatives)


def gradients(job: Any, prepared: Prepared, memory_gib: float, weight: float) -> tuple[dict[str, Tensor], dict]:
    job.clip.model.zero_grad(set_to_none=True)
    objective = Objective(job.clip, named_pairs(job.options.weights), memory_gib=memory_gib, negatives=weight)
    _, terms = objective.gradients(prepared)
    return {name: p.grad.clone() for name, p in trained_parameters(job.clip.model).items() if p.grad is not None}, terms


def test_caching_changes_no_bit_and_the_gradient_is_autograds(tiny: ModuleType) -> None:
    job, prepared = batch(tiny)
    cached, terms = gradients(job, prepared, 0.0, 0.7)
    kept, _ = gradients(job, prepared, 4.0, 0.7)
    assert all(torch.equal(cached[name], kept[name]) for name in kept)
    without, _ = gradients(job, prepared, 4.0, 0.0)
    model = job.clip.model
    model.zero_grad(set_to_none=True)
    positive, negative = (
        encode_ragged(job.clip, prepared.tokens.take(np.arange(part.start, part.stop)))
        for part in (prepared.parts["positive"], prepared.parts["negative"])
    )
    assert prepared.contrasted is not None and len(positive) == 7
    images = functional.normalize(torch.from_numpy(prepared.contrasted), dim=-1)
    loss = negative_loss(images, positive, negative, model.logit_scale.exp())
    assert float(loss.detach()) == pytest.approx(float(terms["negatives"]), rel=1e-5)
    (0.7 * loss).backward()
    for name, parameter in trained_parameters(model).items():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(kept[name] - without[name], grad, rtol=1e-3, atol=2e-5)


def test_negatives_follow_from_seed_and_step(tiny: ModuleType) -> None:
    rows = tiny.tiny_job(Path(), negatives={"weight": 1}).negative_rows
    draws = [negatives_of(rows, 40, seed)(step) for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert np.array_equal(draws[0].image_rows, draws[1].image_rows)
    assert not np.array_equal(draws[0].image_rows, draws[2].image_rows)
    assert not np.array_equal(draws[0].image_rows, draws[3].image_rows)
    assert set(draws[0].image_rows.tolist()) == set(rows.image_rows.tolist())


def test_training_tells_captions_from_negatives(tiny: ModuleType, tmp_path: Path) -> None:
    def right(name: str, **negatives: float) -> float:
        job = tiny.tiny_job(tmp_path / name, keep_best=None, negatives=negatives)
        train(job)
        rows = tiny.tiny_negatives(job.rows)
        positive, negative = (encode_ragged(job.clip, rows.texts[kind]).detach() for kind in ("positive", "negative"))
        images = torch.from_numpy(job.features[rows.image_rows].astype(np.float32))
        return float(((images * positive).sum(1) > (images * negative).sum(1)).float().mean())

    assert right("taught", weight=1.0, rows=10) == 1.0
    lines = (tmp_path / "taught" / "training_log.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["losses"]["negatives"] == pytest.approx(math.log(2), abs=0.3)
    assert right("without") < 1.0


def test_an_option_that_is_off_leaves_fingerprints_as_they_were() -> None:
    assert "negatives" not in meaning(FinetuneOptions())
    assert meaning(FinetuneOptions(negatives=NegativeOptions(weight=1)))["negatives"]["rules"] is True
    with pytest.raises(ValueError, match="turn rejects or rules on"):
        NegativeOptions(weight=1, rejects=False, rules=False)


@pytest.mark.parametrize(
    ("caption", "kind", "among"),
    [
        ("A red cup beside the blue box.", "", ("A blue cup beside the red box.",)),
        ("Three people sit", "replace_number", ("two people sit", "four people sit", "five people sit")),
        ("a tiny cat in a hat", "replace", ("a large cat in a hat", "a tiny dog in a hat")),
        ("the dogs run", "replace_object", ("the cats run", "the cows run", "the horses run")),
    ],
)
def test_rules_change_one_thing(caption: str, kind: str, among: Sequence[str]) -> None:
    made = {rule_negative(f"{caption}{' ' * blanks}") for blanks in range(300)}
    assert all(negative is not None and kind in negative[0] for negative in made)
    assert {*among} <= {negative[1].rstrip() for negative in made if negative is not None}


def test_colors_of_one_thing_are_not_swapped() -> None:
    made = [rule_negative(f"a black and white dog{' ' * blanks}") for blanks in range(100)]
    assert {negative[0] for negative in made if negative is not None} == {"replace_color", "replace_object"}
    assert rule_negative("nothing that a list knows") is None


@given(st.lists(st.sampled_from([*"ab .\n", "red ", "two ", "left ", "Dogs ", "white ", "and "]), max_size=12))
def test_a_negative_is_another_text_and_always_the_same(parts: list[str]) -> None:
    caption = "".join(parts)
    negative = rule_negative(caption)
    assert negative == rule_negative(caption)
    if negative is not None:
        assert negative[1].lower() != caption.lower()


def test_what_only_leaves_something_out_is_no_negative() -> None:
    assert says_something_else("changed_colour", "says blue, which the input does not")
    assert says_something_else("changed_negation", "negation came or went")
    assert not says_something_else("changed_colour", "lost white")
    assert not says_something_else("changed_relation", "behind is lost")
    assert not says_something_else("invented_word", "says blue")
