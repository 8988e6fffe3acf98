"""The report's charts: training logs, the choice of α, and agreement against its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paraclip_core.evaluation.compare import Row
from paraclip_core.report.chart import Line, line_chart
from paraclip_core.report.data import Training

PARETO = ("text_to_image_recall@", "ao@")
"""The figures of the x and y axes, by prefixes of their names."""


def loss_plot(training: Training) -> str | None:
    """Loss over steps, each part of a sum as its own line; None if the log has no loss."""
    logged = [line for line in training.lines if "loss" in line]
    if not logged:
        return None
    steps = [line["step"] for line in logged]
    parts = list(logged[0].get("losses", {}))
    lines = [Line("sum" if len(parts) > 1 else "loss", steps, [line["loss"] for line in logged])]
    if len(parts) > 1:
        lines += [Line(_words(name), steps, [line["losses"][name] for line in logged]) for name in parts]
    return line_chart(f"{training.name}: loss", lines, "step", "InfoNCE loss")


def validation_plot(training: Training) -> str | None:
    """Figures on held-out training images over steps; None if the log has none."""
    logged = [line for line in training.lines if "validation" in line]
    if not logged:
        return None
    steps = [line["step"] for line in logged]
    names = list(logged[0]["validation"])
    lines = [Line(_words(name), steps, [line["validation"][name] for line in logged], True) for name in names]
    # A single line has no legend that would name it.
    figure = _words(names[0]) if len(names) == 1 else "left-out images"
    return line_chart(f"{training.name}: validation", lines, "step", f"{figure}, %")


def alpha_plot(sweep: Mapping[str, Any]) -> str | None:
    """Gain or loss of each figure over α, relative to the base at α = 0; None without a sweep."""
    points = sweep.get("alphas") or []
    if not points:
        return None
    names = [name for name in points[0] if name != "alpha"]
    # The figure that α is chosen by comes first, in the accent color.
    names.sort(key=lambda name: (not name.startswith("ao@"), not name.startswith("js@"), name))
    alphas = [point["alpha"] for point in points]
    lines = [Line(_words(name), alphas, [p[name] - points[0][name] for p in points], True) for name in names]
    return line_chart("alpha sweep", lines, "α  (0 = base, 1 = as trained)", "change, points", sweep.get("chosen"))


def pareto_plot(sweep: Mapping[str, Any]) -> str | None:
    """Agreement against recall over α, as changes from the base, the chosen α circled; None if either is missing."""
    points = sweep.get("alphas") or []
    names = [next((name for name in points[0] if name.startswith(head)), None) for head in PARETO] if points else [None]
    if len(points) < 2 or None in names:
        return None
    along, up = ([point[name] - points[0][name] for point in points] for name in names)
    labels = [(x, y, f"{point['alpha']:g}") for x, y, point in zip(along, up, points, strict=True)]
    chosen = next((place for place, point in enumerate(points) if point["alpha"] == sweep.get("chosen")), None)
    x, y = (f"{_words(str(name))}, change in points" for name in names)
    return line_chart("agreement against recall", [Line("α", along, up, True)], x, y, labels=labels, ring=chosen)


def margin_plot(comparison: Sequence[Row], control: Sequence[Row] = ()) -> str | None:
    """Agreement on paraphrased queries against agreement on hard negatives, of each model; None if no benchmark has
    both.

    On the line the margin between the two equals the base's; a model above it has a larger margin.
    """
    benchmark = next(
        (row.benchmark for row in comparison if row.kind == "query_pairs" and row.metric == "margin"), None
    )
    if benchmark is None:
        return None

    def place(rows: Sequence[Row], model: str) -> tuple[float, float]:
        figures = {row.metric: getattr(row, model) for row in rows if row.benchmark == benchmark}
        return figures["hard_negative_ao@10"], figures["ao@10"]

    places = {"base": place(comparison, "base")}
    if control:
        places["caption-only control"] = place(control, "tuned")
    places["tuned"] = place(comparison, "tuned")
    hard_negatives, paraphrased_queries = zip(*places.values(), strict=True)
    ends = [min(hard_negatives), max(hard_negatives)]
    margin = Line("the base's margin", ends, [paraphrased_queries[0] - hard_negatives[0] + end for end in ends])
    labels = [(*at, name) for name, at in places.items()]
    return line_chart(
        "paraphrased queries against hard negatives",
        [Line("models", hard_negatives, paraphrased_queries, True), margin],
        "AO@10 of hard_negatives, %",
        "AO@10 of paraphrased queries, %",
        labels=labels,
        ring=len(labels) - 1,
    )


def _words(name: str) -> str:
    head, at, depth = name.partition("@")
    shown = {"ao": "AO", "js": "JS"}.get(head) or head.replace("text_to_image", "text→image").replace("_", " ")
    return shown + at + depth
