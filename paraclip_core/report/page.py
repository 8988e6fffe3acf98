"""The report as a self-contained HTML file, without scripts or network access, in light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from paraclip_core.evaluation.benchmarks import describe_benchmark, metric_of
from paraclip_core.evaluation.rows import Row
from paraclip_core.report.churn import changed_lists
from paraclip_core.report.data import QueryPair, ReportData
from paraclip_core.report.html import Shown, page_environment, ranked, style_rules

COUNTED = ("images", "captions", "pairs", "cases", "rows", "groups", "classes")
"""Counts of a benchmark's notes that the page shows."""

EXPLAINED = {
    "ao": "AO@{0}: how far the first {0} images for a query and its paraphrase agree, the first places counting most.",
    "js": "JS@{0}: of the images among the first {0} for either query, the share that is there for both.",
}
"""Explanations of measures, by prefixes of their names."""

CURVE_POINTS = 300
"""About as many points as a small figure can show."""


class Curve(NamedTuple):
    """A line with its caption and the x of the point that is marked."""

    caption: str
    points: Sequence[tuple[float, float]]
    marked: float


def render_report(data: ReportData) -> str:
    """The page, to be written as UTF-8; equal data gives equal bytes.

    All text is escaped; a content security policy additionally forbids scripts and network access.
    """
    environment = page_environment()
    environment.filters.update(
        share=_share, size=_size, compact=partial(json.dumps, indent=1, sort_keys=True, ensure_ascii=False)
    )
    classes = {image_id: f"t{number}" for number, image_id in enumerate(sorted(data.thumbnails))}
    by_stage = ((stage, list(groups)) for stage, groups in groupby(data.rejects, key=lambda group: group.stage))
    return environment.get_template("template.html").render(
        data=data,
        headlines=[] if data.untrained else _headlines(data.comparison),
        benchmarks=[
            (name, _about(kind, data.protocols.get(name, {})), list(rows))
            for (name, kind), rows in groupby(data.comparison, key=lambda row: (row.benchmark, row.kind))
        ],
        over_control={(row.benchmark, row.metric): row for row in data.over_control},
        control={(row.benchmark, row.metric): row for row in data.control},
        explained=_explained(data.comparison),
        reach=_reach(data.comparison),
        curves=_curves(data),
        place=_place,
        changed=changed_lists(data.churn, classes),
        better=[(pair, _lists(pair, classes)) for pair in data.better],
        worse=[(pair, _lists(pair, classes)) for pair in data.worse],
        rejects=[
            (stage, sum(group.count for group in groups), sorted(groups, key=lambda group: -group.count))
            for stage, groups in by_stage
        ],
        funnel=_funnel(data.funnel),
        classes=classes,
        thumbnails=style_rules(data.thumbnails, classes),
    )


def _headlines(comparison: Sequence[Row]) -> list[Row]:
    """The rows at the top of the page: each headline metric from its first benchmark, agreement before all others."""
    first = {row.metric: row for row in reversed(comparison) if row.facts.headline}
    shown = [row for row in comparison if first.get(row.metric) is row]
    return sorted(shown, key=lambda row: not row.metric.startswith("ao@"))


def _about(kind: str, protocol: Mapping[str, Any]) -> str:
    """Title and protocol of a benchmark."""
    row = describe_benchmark(kind)
    counted = [
        f"{protocol[name]:,} {name} searched"
        if name == "images" and row.searches_images
        else f"{protocol[name]:,} {name}"
        for name in COUNTED
        if isinstance(protocol.get(name), int)
    ]
    split = [f"split {protocol['split']}"] if isinstance(protocol.get("split"), str) else []
    return " · ".join([row.title, *counted, *split])


def _explained(comparison: Sequence[Row]) -> list[str]:
    """Explanations of measures with uncommon names, a line each."""
    measured = {row.metric.partition("@")[0]: row.metric for row in comparison if not row.facts.part}
    return [text.format(measured[name].partition("@")[2]) for name, text in EXPLAINED.items() if name in measured]


def _funnel(steps: Sequence[tuple[str, int]]) -> list[tuple[str, int, float, str]]:
    """Name, count, bar width in percent, and share: of the rows read or, after `asked`, of the rows asked about."""
    top = max((count for _, count in steps), default=0) or 1
    counts, shown = dict(steps), []
    for place, (name, count) in enumerate(steps):
        after = "asked" in counts and place > [step for step, _ in steps].index("asked")
        whole = (counts["asked"] or 1) if after else top
        share = f"{100 * count / whole:.1f}\u00a0% of {'asked' if after else 'rows read'}"
        shown.append((name, count, 100 * count / top, share))
    return shown


def _reach(comparison: Iterable[Row]) -> dict[str, float]:
    """Half the width of the interval bars' common scale, by unit."""
    reach: dict[str, float] = {}
    for row in comparison:
        widest = max(abs(end) for end in (row.low, row.high, row.delta))
        reach[row.facts.unit] = max(reach.get(row.facts.unit, 0.0), widest)
    return {unit: widest or 1.0 for unit, widest in reach.items()}


def _curves(data: ReportData) -> list[Curve]:
    """The loss of each training by step, and the figures of the chosen candidate by α."""
    curves = []
    for name, losses in data.losses.items():
        if losses:
            last, loss = losses[-1]
            points = [*losses[: -1 : 1 + len(losses) // CURVE_POINTS], (last, loss)]
            curves.append(Curve(f"{name}: loss by step, {loss:.2f} after {last:,}", points, last))
    if data.candidates:
        chosen = data.candidates["chosen"]
        key = {name: chosen[name] for name in ("recipe", "learning_rate")}
        sweep = next(one["alphas"] for one in data.candidates["candidates"] if key.items() <= one.items())
        for name in sorted(sweep[0].keys() - {"alpha"}):
            points = [(point["alpha"], point[name]) for point in sweep]
            words = metric_of("paraphrased_retrieval", name).words
            at = f"{dict(points)[chosen['alpha']]:.1f} at {chosen['alpha']:g}"
            curves.append(Curve(f"{words} by α: {points[0][1]:.1f} at 0, {at}", points, chosen["alpha"]))
    return curves


def _place(value: float, low: float, high: float, start: float, end: float) -> str:
    """A coordinate of `value` on an axis from `low` to `high`."""
    return f"{start + (value - low) / ((high - low) or 1) * (end - start):.1f}"


def _lists(pair: QueryPair, classes: Mapping[str, str]) -> list[list[tuple[str, list[Shown]]]]:
    """Label and images of both lists of each model, the base first."""
    models = {
        "base": (pair.base_caption, pair.base_paraphrased),
        "tuned": (pair.tuned_caption, pair.tuned_paraphrased),
    }
    return [
        [
            (f"{model}, found by the {text}", ranked(images, compared, classes, [pair.image_id]))
            for text, images, compared in (
                ("caption", caption, paraphrased),
                ("paraphrased query", paraphrased, caption),
            )
        ]
        for model, (caption, paraphrased) in models.items()
    ]


def _share(value: float, reach: float) -> str:
    """Position of a difference on the interval bar's scale, as a CSS percentage."""
    return f"{50 + 50 * max(-1.0, min(1.0, value / reach)):.2f}%"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
