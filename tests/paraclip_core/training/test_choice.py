"""Interpolation with the base, and the choice among candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paraclip_core.training.choice import FELT, Choice, Point, as_json, choose, copy_weights, interpolate
from paraclip_core.training.options import (
    DEFAULT_RECIPES,
    RATES,
    RECIPES,
    RETENTION,
    Candidate,
    FinetuneOptions,
    LossWeights,
    TrainingOptions,
)
from paraclip_core.training.validation import AO, OVERLAP, PARAPHRASE_RECALL, RECALL, Validation

GRID = (0.0, 0.5, 1.0)
IMAGES = 400


def found(recall: float, ao: float | None = None, overlap: float = 100.0, noise: float = 0.0) -> Validation:
    """A validation with these figures in percent; with `noise` the images differ."""
    varying = np.random.default_rng(0).normal(0, noise / IMAGES, IMAGES)
    figures = {RECALL: recall, OVERLAP: overlap} | ({} if ao is None else {AO: ao, PARAPHRASE_RECALL: ao})
    parts = {name: value / IMAGES + (varying - varying.mean()) for name, value in figures.items()}
    return Validation(figures, parts, np.zeros((0, 10), np.int64))


NEITHER = {"caption_paraphrase_1": 0, "paraphrase_1_paraphrase_2": 0, "hard_negatives": 1}
CANDIDATES = {rate: Candidate("ranking", TrainingOptions(learning_rate=rate)) for rate in (1e-4, 1e-3, 1e-2)}


def point(alpha: float, validation: Validation, rate: float = 1e-3) -> Point:
    return Point(CANDIDATES[rate], alpha, validation)


def chosen_of(points: list[Point], base: Validation, grid: tuple[float, ...] = GRID) -> tuple[Choice, list[Point]]:
    """The choice among these points and the base, which every candidate has at α = 0; and all points."""
    whole = [one for p in points for one in (replace(p, alpha=0.0, validation=base), p)]
    # A candidate's points are side by side, its base once.
    whole = [p for n, p in enumerate(whole) if p.alpha or all(q.candidate is not p.candidate for q in whole[:n])]
    return choose(whole, grid), whole


def test_ends_are_exact_and_the_middle_is_between() -> None:
    parameters = {"w": nn.Parameter(torch.randn(50)), "s": nn.Parameter(torch.tensor(2.0))}
    base = copy_weights(parameters)
    tuned = {name: value + torch.randn_like(value) for name, value in base.items()}
    for alpha, expected in ((0.0, base), (1.0, tuned)):
        interpolate(parameters, base, tuned, alpha)
        assert all(torch.equal(parameters[name], expected[name]) for name in parameters)
    interpolate(parameters, base, tuned, 0.25)
    torch.testing.assert_close(parameters["w"].detach(), 0.75 * base["w"] + 0.25 * tuned["w"])


@pytest.mark.parametrize(
    ("base", "points", "chosen"),
    [
        # The best loses recall beyond chance.
        (found(50, 20), [point(0.5, found(50, 25)), point(1.0, found(47, 40, noise=10))], 0.5),
        # A loss within chance is none.
        (found(50, 20), [point(0.5, found(50, 25)), point(1.0, found(49.8, 30, noise=20))], 1.0),
        # Nothing is better, and the base stays.
        (found(50, 20), [point(0.5, found(50, 19)), point(1.0, found(50, 18))], 0.0),
        # Of equals, the one that changes the fewest results.
        (found(50, 20), [point(0.5, found(50, 26, 80)), point(1.0, found(50, 26.1, 40, noise=10))], 0.5),
    ],
)  # fmt: skip
def test_rule(base: Validation, points: list[Point], chosen: float) -> None:
    assert chosen_of(points, base)[0].chosen.alpha == chosen


def test_a_single_alpha_is_no_choice() -> None:
    lost = [point(1.0, found(10, 5), 1e-4), point(1.0, found(12, 6), 1e-3)]
    chosen = chosen_of(lost, found(50, 20), (1.0,))[0].chosen
    assert (chosen.alpha, chosen.candidate.options.learning_rate) == (1.0, 1e-3)
    assert choose([point(0.0, found(50, 20))], (0.0,)).chosen.alpha == 0.0


def test_without_pairs_it_does_not_pretend_to_have_compared_them() -> None:
    points = [point(0.5, found(50)), point(0.75, found(49.9, noise=10)), point(1.0, found(40))]
    choice, _ = chosen_of(points, found(50))
    assert choice.chosen.alpha == 0.75
    assert all(part in choice.rule for part in ("could not be", "finetune.validation", "paraphrase.fraction"))


@pytest.mark.parametrize(
    ("best", "told"),
    [(1e-4, "the lowest that was tried; 1e-05"), (1e-3, None), (1e-2, "the highest that was tried; 0.1")],
)
def test_an_optimum_at_an_edge_is_reported_with_the_next_rate(best: float, told: str | None) -> None:
    points = [point(1.0, found(50, 30 if rate == best else 25), rate) for rate in (1e-4, 1e-3, 1e-2)]
    notes = chosen_of(points, found(50, 20))[0].notes
    assert (told in notes[0]) if told else not notes


def test_every_candidate_that_is_not_chosen_says_why() -> None:
    points = [point(1.0, found(50, 30)), point(1.0, found(50, 21), 1e-4), point(1.0, found(20, 60), 1e-2)]
    choice, whole = chosen_of(points, found(50, 20))
    plain = as_json(whole, choice)
    assert plain["chosen"] == {"recipe": "ranking", "learning_rate": 1e-3, "alpha": 1.0}
    stopped = {one["learning_rate"]: one["stopped"] for one in plain["candidates"]}
    assert stopped[1e-3] is None
    assert stopped[1e-4].startswith("at α = 1 the criterion changes by +0.7")
    assert "recall@10 of plain captions falls by 30.0" in stopped[1e-2]
    assert [each["alpha"] for each in plain["candidates"][0]["alphas"]] == [0.0, 1.0]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6))
def test_the_choice_never_loses_recall_beyond_chance_or_the_criterion(rows: list[tuple[float, float, float]]) -> None:
    base = found(50, 50)
    points = [point((n + 1) / len(rows), found(*row)) for n, row in enumerate(rows)]
    chosen = chosen_of(points, base, (0.0, 1.0))[0].chosen
    # Images do not differ, so every difference is beyond chance.
    assert chosen.validation.figures[RECALL] >= 50 - 1e-6
    assert sum(chosen.validation.figures[name] for name in FELT) >= 150 - 1e-6


def test_candidates_are_every_recipe_at_every_rate() -> None:
    default = FinetuneOptions().candidates("built-in")
    assert [(one.recipe, one.options.learning_rate) for one in default] == [
        (recipe, rate) for recipe in DEFAULT_RECIPES for rate in RATES["built-in"]
    ]
    assert DEFAULT_RECIPES == ("published", "anchored", "contrast")
    (contrast,) = FinetuneOptions.model_validate({"recipe": "contrast", "learning_rate": 1e-3}).candidates("clip")
    ranking = RECIPES["ranking"].losses
    assert contrast.options.weights == ranking.weights.model_copy(update={"hard_negatives": 1.0})
    assert contrast.options.ranking_distillation == ranking.ranking_distillation
    assert (contrast.options.feature_distillation, ranking.feature_distillation) == (300.0, 0.0)
    own = FinetuneOptions.model_validate({"weights": {"image_caption": 1}, "learning_rate": 1e-5}).candidates("clip")
    assert [one.name for one in own] == ["own at 1e-05"]
    assert own[0].options.weights == LossWeights(image_caption=1)
    named = FinetuneOptions.model_validate({"recipe": "ranking", "learning_rate": [1e-3, 1e-4]})
    assert [one.name for one in named.candidates("siglip")] == ["ranking at 0.0001", "ranking at 0.001"]
    # What a process sends to another one is the same.
    assert FinetuneOptions.model_validate(named.model_dump(mode="json")) == named


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": NEITHER | {"image_paraphrase_2": 0}}, "at least one loss"),
        ({"weights": NEITHER}, "set caption_paraphrase_1 or"),
        (
            {"recipe": ["published"], "feature_distillation": 3},
            "feature_distillation would be ignored: only the recipe `own` reads it",
        ),
    ],
)
def test_hard_negatives_alone_and_losses_that_no_recipe_reads_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneOptions.model_validate(options)


@pytest.mark.parametrize("grid", [GRID, (1.0,)])
def test_a_log_of_which_no_query_is_held_out_is_tuned(grid: tuple[float, ...]) -> None:
    """Nothing was measured, not even how many of the base's first images stay."""
    nothing = Validation({OVERLAP: 0.0}, {OVERLAP: np.zeros(0)}, np.zeros((0, 10), np.int64))
    alphas = sorted({0.0, *grid})
    points = [point(alpha, nothing, rate) for rate in (1e-4, 1e-3) for alpha in alphas]
    choice = choose(points, grid, RETENTION)
    assert (choice.chosen.alpha, choice.chosen.candidate) == (1.0, points[0].candidate)
    if len(grid) > 1:
        assert "no query that has paraphrases is held out" in choice.rule


def of_log(ao: float, kept: float) -> Validation:
    """A validation of queries of a log, which has no recall."""
    whole, names = found(0.0, ao, kept), (AO, OVERLAP)
    return Validation({n: whole.figures[n] for n in names}, {n: whole.parts[n] for n in names}, whole.found)


def test_a_log_chooses_the_most_agreement_that_keeps_enough_results() -> None:
    base = of_log(50, 100)
    points = [point(0.0, base), point(0.25, of_log(54, 80)), point(0.5, of_log(58, 66)), point(1.0, of_log(70, 64))]
    choice = choose(points, GRID, RETENTION)
    assert choice.chosen is points[2] and "keep 65 %" in choice.rule and "recall" not in choice.rule
    assert as_json(points, choice)["chosen"]["alpha"] == 0.5
