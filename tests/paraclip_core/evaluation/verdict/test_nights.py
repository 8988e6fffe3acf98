"""Years of nights: how often equal models change places, and how soon a better one serves.

The noise is that of a finished demo run: by how much each of its 750 queries changed. Of a query drawn for a night the
sign is drawn, too, so models are equal in the mean and differ as two models do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paraclip_core.evaluation.options import GateRule
from paraclip_core.evaluation.rows import Row
from paraclip_core.evaluation.verdict import AGAINST_CHAMPION
from paraclip_core.evaluation.verdict.evidence import Evidence

KIND, METRIC, RECALL = "paraphrased_retrieval", "corrected_ao@10", "paraphrased_query_text_to_image_recall@10"
CHANGES: dict[str, list[float]] = json.loads(Path("tests/data/query_changes.json").read_text("utf-8"))
"""By metric, the change of each query, as fractions."""
YEARS, NIGHTS = 60, 365
BLOCK = 100
"""Nights that are drawn at once."""


def drawn(
    rng: np.random.Generator, nights: int, queries: int, metrics: list[str]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each metric the means and standard errors, in points, of so many nights; a night's queries are the same for
    all metrics."""
    values = np.stack([100 * np.array(CHANGES[metric]) for metric in metrics])
    means, errors = np.empty((len(metrics), nights)), np.empty((len(metrics), nights))
    for start in range(0, nights, BLOCK):
        block = slice(start, min(start + BLOCK, nights))
        size = block.stop - block.start, queries
        chosen = values[:, rng.integers(0, values.shape[1], size)] * rng.choice([-1.0, 1.0], size)
        means[:, block], errors[:, block] = chosen.mean(axis=2), chosen.std(axis=2) / np.sqrt(queries)
    return {metric: (means[row], errors[row]) for row, metric in enumerate(metrics)}


def evidence(figures: Mapping[str, tuple[float, float]], queries: int) -> Evidence:
    rows = [
        Row("held_out", KIND, metric, 50, 50 + mean, mean, mean - 1.96 * error, mean + 1.96 * error, queries, queries)
        for metric, (mean, error) in figures.items()
    ]
    return Evidence(tuple(rows), GateRule(metric=f"{KIND}/{METRIC}"), rival="the champion")


def test_of_equal_models_production_hardly_moves() -> None:
    rng, queries = np.random.default_rng(0), 300
    means, errors = drawn(rng, YEARS * NIGHTS, queries, [METRIC])[METRIC]
    moved = [
        AGAINST_CHAMPION.judge(evidence({METRIC: night}, queries))[0] == "promote"
        for night in zip(means.tolist(), errors.tolist(), strict=True)
    ]
    moves = np.array(moved).reshape(YEARS, NIGHTS).sum(axis=1)
    assert (moves <= 2).mean() >= 0.95


def test_a_gain_of_three_points_is_taken_within_three_nights() -> None:
    rng = np.random.default_rng(1)
    queries = int((100 * np.std(CHANGES[METRIC]) / 0.75) ** 2)
    nights = drawn(rng, 3 * 500, queries, [*CHANGES])
    taken = [
        AGAINST_CHAMPION.judge(
            evidence(
                {m: (mean[n] + (3.0 if m == METRIC else 0.0), error[n]) for m, (mean, error) in nights.items()}, queries
            )
        )[0]
        == "promote"
        for n in range(3 * 500)
    ]
    assert np.array(taken).reshape(500, 3).any(axis=1).mean() >= 0.95


@pytest.mark.parametrize("queries", [100, 750, 20_000])
def test_guards_pass_a_model_that_loses_nothing_and_hold_a_real_loss(queries: int) -> None:
    rng, tries = np.random.default_rng(2), 200
    nights = drawn(rng, tries, queries, [*CHANGES])

    def held(lost: float) -> float:
        """Share of the tries that are held if so many times the allowed recall is lost."""
        count = 0
        for n in range(tries):
            figures = {metric: (mean[n], error[n]) for metric, (mean, error) in nights.items()}
            (guard,) = [g for g in evidence(figures, queries).guards if g.row.metric == RECALL]
            mean, error = figures[RECALL]
            figures[RECALL] = mean - lost * max(guard.points, guard.shows), error
            count += bool(evidence(figures, queries).broken)
        return count / tries

    assert held(0) <= 0.05
    assert held(2) >= 0.8
