"""The report's charts: training logs, the choice of α, and agreement against its costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paraclip_core.evaluation.rows import Row
from paraclip_core.report.chart import Line, line_chart
from paraclip_core.report.data import Training

AGREEMENT, RECALL, OVERLAP = "ao@10", "text_to_image_recall@10", "overlap@10"
"""Figures of `candidates.json`."""
ALPHA = "α  (0 = base, 1 = as trained)"


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


def recipe_plot(candidates: Mapping[str, Any], recipe: str) -> str | None:
    """Gain of agreement over α, a line for each learning rate of a recipe; None without held-out pairs."""
    lines = []
    for candidate in candidates["candidates"]:
        points = candidate["alphas"]
        if candidate["recipe"] == recipe and AGREEMENT in points[0]:
            gains = [point[AGREEMENT] - points[0][AGREEMENT] for point in points]
            lines.append(Line(f"{candidate['learning_rate']:g}", [point["alpha"] for point in points], gains, True))
    if not lines:
        return None
    return line_chart(f"{recipe}: agreement by learning rate", lines, ALPHA, f"{_words(AGREEMENT)}, change in points")


def alpha_plot(candidates: Mapping[str, Any]) -> str | None:
    """Gain or loss of each figure over α, relative to the base at α = 0, for the chosen candidate."""
    points = _chosen(candidates)
    names = [name for name in points[0] if name not in ("alpha", OVERLAP)]
    # The figure that users ask for comes first, in the accent color.
    names.sort(key=lambda name: (not name.startswith("ao@"), not name.startswith("js@"), name))
    alphas = [point["alpha"] for point in points]
    lines = [Line(_words(name), alphas, [p[name] - points[0][name] for p in points], True) for name in names]
    return line_chart("alpha sweep", lines, ALPHA, "change, points", candidates["chosen"]["alpha"])


def pareto_plot(candidates: Mapping[str, Any]) -> str | None:
    """Agreement against recall over α, as changes from the base, the chosen α circled; None if either is missing."""
    return _against(candidates, RECALL, "agreement against recall", lambda name: f"{_words(name)}, change in points")


def churn_plot(candidates: Mapping[str, Any]) -> str | None:
    """Agreement against the share of the first images that change, over α; None if either is missing."""
    return _against(
        candidates, OVERLAP, "gain against change", lambda _: "first ten images that stay, change in points"
    )


def _against(candidates: Mapping[str, Any], along: str, title: str, label: Callable[[str], str]) -> str | None:
    points = _chosen(candidates)
    if len(points) < 2 or not {along, AGREEMENT} <= points[0].keys():
        return None
    x, y = ([point[name] - points[0][name] for point in points] for name in (along, AGREEMENT))
    labels = [(x, y, f"{point['alpha']:g}") for x, y, point in zip(x, y, points, strict=True)]
    chosen = next((n for n, point in enumerate(points) if point["alpha"] == candidates["chosen"]["alpha"]), None)
    up = f"{_words(AGREEMENT)}, change in points"
    return line_chart(title, [Line("α", x, y, True)], label(along), up, labels=labels, ring=chosen)


def _chosen(candidates: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
    """What the chosen candidate finds at each α, 0 first."""
    key = [candidates["chosen"][name] for name in ("recipe", "learning_rate")]
    tried = candidates["candidates"]
    return next(candidate["alphas"] for candidate in tried if [candidate["recipe"], candidate["learning_rate"]] == key)


def margin_plot(comparison: Sequence[Row], control: Sequence[Row] = ()) -> str | None:
    """Agreement on paraphrased queries against agreement on hard negatives, of each model; None if no benchmark has
    both.

    On the line the margin between the two equals the base's; a model above it has a larger margin.
    """
    both = (f"hard_negative_{AGREEMENT}", AGREEMENT)
    measured = {(row.benchmark, row.metric) for row in comparison if row.kind == "query_pairs"}
    benchmark = next(
        (row.benchmark for row in comparison if all((row.benchmark, name) in measured for name in both)), None
    )
    if benchmark is None:
        return None

    def place(rows: Sequence[Row], model: str) -> tuple[float, float]:
        figures = {row.metric: getattr(row, model) for row in rows if row.benchmark == benchmark}
        return figures[both[0]], figures[both[1]]

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
        "AO@10 of hard negatives, %",
        "AO@10 of paraphrased queries, %",
        labels=labels,
        ring=len(labels) - 1,
    )


def _words(name: str) -> str:
    head, at, depth = name.partition("@")
    shown = {"ao": "AO", "js": "JS"}.get(head) or head.replace("text_to_image", "text→image").replace("_", " ")
    return shown + at + depth
