"""Interpolation with the base, and the rule that chooses."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from paraclip_core.training.alpha import (
    AO,
    JS,
    PARAPHRASE_RECALL,
    RECALL,
    ValidationSet,
    choose_alpha,
    copy_weights,
    interpolate,
    measure,
    sweep,
)
from paraclip_core.training.options import AlphaOptions

RULE = AlphaOptions(max_recall_drop=0.5)


def points(*rows: tuple[float, float, float]) -> list[dict[str, float]]:
    return [{"alpha": alpha, AO: ao, JS: 0.0, RECALL: recall} for alpha, ao, recall in rows]


def test_ends_are_exact_and_the_middle_is_between() -> None:
    parameters = {"w": nn.Parameter(torch.randn(50)), "s": nn.Parameter(torch.tensor(2.0))}
    base = copy_weights(parameters)
    tuned = {name: value + torch.randn_like(value) for name, value in base.items()}
    for alpha, expected in ((0.0, base), (1.0, tuned)):
        interpolate(parameters, base, tuned, alpha)
        assert all(torch.equal(parameters[name], expected[name]) for name in parameters)
    interpolate(parameters, base, tuned, 0.25)
    torch.testing.assert_close(parameters["w"].detach(), 0.75 * base["w"] + 0.25 * tuned["w"])


def test_sweep_measures_the_base_too() -> None:
    parameters = {"w": nn.Parameter(torch.zeros(()))}
    points = sweep(parameters, {"w": torch.tensor(0.0)}, {"w": torch.tensor(8.0)}, (1.0, 0.5),
                  lambda: {"w": float(parameters["w"].detach())})  # fmt: skip
    assert points == [{"alpha": 0.0, "w": 0.0}, {"alpha": 0.5, "w": 4.0}, {"alpha": 1.0, "w": 8.0}]


@pytest.mark.parametrize(("recalls", "chosen"), [((50, 49.8, 49.5, 49.4), 0.75), ((50, 40, 40, 40), 0.0)])
def test_without_pairs_it_does_not_pretend_to_have_compared_them(recalls: tuple[float, ...], chosen: float) -> None:
    choice = choose_alpha(
        [{"alpha": alpha, RECALL: recall} for alpha, recall in zip((0.0, 0.5, 0.75, 1.0), recalls, strict=True)], RULE
    )
    assert choice["chosen"] == chosen
    assert all(part in choice["rule"] for part in ("could not be", "finetune.validation", "paraphrase.fraction"))


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([(0, 20, 50), (0.5, 25, 49.6), (1, 30, 48)], 0.5),  # the best one loses too much recall
        ([(0, 20, 50), (0.5, 25, 49.5), (1, 25, 52)], 0.5),  # exactly the limit is allowed; the smaller of equals
        ([(0, 20, 50), (0.5, 19, 51), (1, 25, 20)], 0.0),  # nothing is better: the base stays
        ([(0, 0, 0)], 0.0),
    ],
)
def test_rule(rows: list[tuple[float, float, float]], chosen: float) -> None:
    choice = choose_alpha(points(*rows), RULE)
    assert choice["chosen"] == chosen
    assert "0.5 points" in choice["rule"]
    assert [point["alpha"] for point in choice["alphas"]] == [row[0] for row in rows]


@pytest.mark.parametrize(("weight", "chosen"), [(0.0, 1.0), (1.0, 0.5), (100.0, 0.25)])
def test_recall_counts_by_its_weight(weight: float, chosen: float) -> None:
    rule = AlphaOptions(recall_weight=weight)
    rows = [(0, 20, 50), (0.25, 22, 53), (0.5, 25, 52), (1, 26, 50)]
    choice = choose_alpha(points(*rows), rule)
    assert choice["chosen"] == chosen
    assert ("+" in choice["rule"]) == bool(weight)


@pytest.mark.parametrize("images", [1, 2, 10, 30])
def test_one_image_tells_nothing_of_rankings_and_of_some_any_can_be_missed(tiny: ModuleType, images: int) -> None:
    rows, features = tiny.tiny_rows(images=images)
    texts = rows.texts
    held_out = ValidationSet(
        features, texts["caption"], rows.image_rows, texts["caption"], texts["paraphrase_2"], rows.image_rows
    )
    figures = measure(tiny.tiny_clip(), held_out)
    if images == 1:
        assert set(figures) == {RECALL}
        # Every α finds the one image, and that must not undo the training.
        assert choose_alpha([{"alpha": alpha, **figures} for alpha in np.linspace(0, 1, 3)], RULE)["chosen"] == 1
    else:
        assert set(figures) == {RECALL, AO, JS, PARAPHRASE_RECALL}
        assert 0 < figures[RECALL] < 75 and figures[JS] < 100
