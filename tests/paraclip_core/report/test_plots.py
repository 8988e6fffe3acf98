"""Plots are well-formed SVG with stable bytes, no ids and the page's colors."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

from paraclip_core.evaluation.rows import Row
from paraclip_core.report.data import Training
from paraclip_core.report.plots import (
    alpha_plot,
    churn_plot,
    loss_plot,
    margin_plot,
    pareto_plot,
    recipe_plot,
    validation_plot,
)


def candidates(chosen: float, *missing: str) -> dict[str, Any]:
    """Two learning rates of a recipe."""

    def figures(rate: float, a: float) -> dict[str, float]:
        every = {"alpha": a, "text_to_image_recall@10": 60 - a, "overlap@10": 100 - 30 * a, "js@10": 1.0}
        every["ao@10"] = 30 + 8000 * a * rate
        return {name: value for name, value in every.items() if name not in missing}

    tried = [
        {"recipe": "ranking", "learning_rate": rate, "alphas": [figures(rate, a) for a in (0.0, 0.5, 1.0)]}
        for rate in (1e-4, 1e-3)
    ]
    return {"candidates": tried, "chosen": {"recipe": "ranking", "learning_rate": 1e-3, "alpha": chosen}}


SWEEP = candidates(0.5)
LOG = Training(
    "finetune",
    [
        {"step": 1, "loss": 3.0, "losses": {"image~paraphrase_2": 1.0, "caption~paraphrase_1": 2.0}},
        {"step": 2, "loss": 2.0, "losses": {"image~paraphrase_2": 0.5, "caption~paraphrase_1": 1.5}},
        {"step": 2, "validation": {"ao@10": 30.0}},
    ],
)


def rows(negatives: float, tuned: float) -> list[Row]:
    figures = {"ao@10": (50, tuned), "ao@10@typo": (9, 9)}
    figures |= {"hard_negative_ao@10": (45, negatives), "margin": (5, tuned - negatives)}
    return [Row("sick", "query_pairs", name, a, b, b - a, 0, 0, n=9, clusters=9) for name, (a, b) in figures.items()]


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_bytes_and_colors_are_the_page_s_and_nothing_reaches_out() -> None:
    svg = str(alpha_plot(SWEEP))
    assert alpha_plot(SWEEP) == svg and "date" not in svg.lower()
    colors = {"none", "var(--accent)", "var(--ink)", "var(--muted)", "var(--rule)"}
    assert set(re.findall(r"(?:fill|stroke):([^;\"]+)", svg)) == colors
    assert "<style" not in svg and "font-family" not in svg and " id=" not in svg


def test_what_was_tried_and_logged_is_drawn_and_nothing_else() -> None:
    shown = texts(str(alpha_plot(SWEEP)))
    assert shown.index("AO@10") < shown.index("text→image recall@10") and "change, points" in shown
    assert {"0.0001", "0.001", "AO@10, change in points"} <= set(texts(str(recipe_plot(SWEEP, "ranking"))))
    assert {"sum", "image~paraphrase 2", "caption~paraphrase 1"} <= set(texts(str(loss_plot(LOG))))
    assert "AO@10, %" in texts(str(validation_plot(LOG)))
    assert loss_plot(Training("x", [])) is None
    assert validation_plot(Training("x", LOG.lines[:2])) is None
    assert recipe_plot(candidates(0.5, "ao@10"), "ranking") is None


def test_agreement_against_its_costs_has_a_point_for_each_alpha() -> None:
    svg = pareto_plot(SWEEP)
    assert svg is not None and svg.count("<circle") == 4 and svg.count('r="7"') == 1
    assert all(f">{label}</text>" in svg for label in ("0", "0.5", "1"))
    assert "AO@10, change in points" in svg and "text→image recall@10, change in points" in svg
    assert 'r="7"' not in str(pareto_plot(candidates(0.3)))
    assert "first ten images that stay, change in points" in texts(str(churn_plot(SWEEP)))
    assert churn_plot(candidates(0.5, "overlap@10")) is None


def test_paraphrased_queries_and_hard_negatives_of_three_models() -> None:
    svg = str(margin_plot(rows(47, 54), rows(48, 51)))
    assert {"tuned", "base", "caption-only control", "the base's margin"} <= set(texts(svg))
    assert svg.count("<circle") == 4  # with the ring
    for lacking in ("ao@10", "hard_negative_ao@10"):
        partly = [row for row in rows(47, 54) if row.metric != lacking]
        assert margin_plot(partly) is None
        # The next benchmark that has both is drawn.
        assert margin_plot([replace(row, benchmark="other") for row in partly] + rows(47, 54)) == margin_plot(
            rows(47, 54)
        )
