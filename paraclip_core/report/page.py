"""The report and the audit, each as one HTML file that needs nothing else: no script, no network, light and dark.

Charts are inline SVG that takes its colors from the page."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image, ImageOps

from paraclip_core.evaluation.audit import Audit, Figure
from paraclip_core.evaluation.benchmarks import describe_benchmark
from paraclip_core.evaluation.compare import Row
from paraclip_core.report.data import QueryPair, RejectGroup, ReportData, Training

SIDE, QUALITY = 112, 74
"""Of a thumbnail, in pixels, and of its JPEG."""
COUNTED = ("images", "captions", "pairs", "cases", "rows", "groups", "classes")
"""What a benchmark's notes count that the page says."""
WORST = 12
"""Pairs that the audit shows."""
EXPLAINED = {
    "ao": "AO@{0}: how far the first {0} images for two wordings of one meaning agree, the first places counting most.",
    "js": "JS@{0}: of the images among the first {0} for either wording, the share that is there for both.",
}
"""Sentences on measures, by the beginnings of their names."""


@dataclass(frozen=True)
class Plot:
    """A chart with the words under it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class ListOfImages:
    """A ranked list as it is drawn."""

    model: str
    side: str
    images: Sequence[tuple[str, str, bool, bool]]
    """Image id, CSS class, whether the model's other list has it too, whether it is the right one."""


def page_environment() -> Environment:
    """Templates of this folder: every text is escaped, and a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("paraclip_core.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, difference=difference)
    return environment


def render_report(data: ReportData) -> str:
    """The page, to be written as UTF-8: equal data gives equal bytes.

    Every text is escaped; a content security policy forbids scripts and network besides.
    """
    environment = page_environment()
    environment.filters.update(
        share=_share, size=_size, compact=partial(json.dumps, indent=1, sort_keys=True, ensure_ascii=False)
    )
    classes = {image_id: f"t{number}" for number, image_id in enumerate(sorted(data.thumbnails))}
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
        plots=_plots(data),
        better=[(pair, _lists(pair, classes)) for pair in data.better],
        worse=[(pair, _lists(pair, classes)) for pair in data.worse],
        rejects=_by_stage(data.rejects),
        funnel=_funnel(data.funnel),
        classes=classes,
        thumbnails=style_rules(data.thumbnails, classes),
    )


def _headlines(comparison: Sequence[Row]) -> list[Row]:
    """The rows at the top of the page: of each headline metric its first benchmark's."""
    first = {row.metric: row for row in reversed(comparison) if row.facts.headline}
    return [row for row in comparison if first.get(row.metric) is row]


def _about(kind: str, protocol: Mapping[str, Any]) -> str:
    """Title of a benchmark, and what it counted over what."""
    row = describe_benchmark(kind)
    counted = [
        f"{protocol[name]:,} {name} searched"
        if name == "images" and row.searches_images
        else f"{protocol[name]:,} {name}"
        for name in COUNTED
        if isinstance(protocol.get(name), int)
    ]
    named = [f"{name} {protocol[name]}" for name in ("split", "language") if isinstance(protocol.get(name), str)]
    return " · ".join([row.title, *counted, *named])


def _explained(comparison: Sequence[Row]) -> list[str]:
    """What the measures mean that are not known by their names, a line each."""
    measured = {row.metric.partition("@")[0]: row.metric for row in comparison}
    return [text.format(measured[name].partition("@")[2]) for name, text in EXPLAINED.items() if name in measured]


def _funnel(steps: Sequence[tuple[str, int]]) -> list[tuple[str, int, float, str]]:
    """Name, count, width of the bar in percent, and share: of the rows read, and from `asked` on of those."""
    top = max((count for _, count in steps), default=0) or 1
    counts, shown = dict(steps), []
    for place, (name, count) in enumerate(steps):
        after = "asked" in counts and place > [step for step, _ in steps].index("asked")
        whole = (counts["asked"] or 1) if after else top
        share = f"{100 * count / whole:.1f}\u00a0% of {'asked' if after else 'rows read'}"
        shown.append((name, count, 100 * count / top, share))
    return shown


def _reach(comparison: Iterable[Row]) -> dict[str, float]:
    """Half the width of the interval bars' common scale, for each unit."""
    reach: dict[str, float] = {}
    for row in comparison:
        widest = max(abs(end) for end in (row.low, row.high, row.delta))
        reach[row.facts.unit] = max(reach.get(row.facts.unit, 0.0), widest)
    return {unit: widest or 1.0 for unit, widest in reach.items()}


def _plots(data: ReportData) -> list[Plot]:
    drawn: list[tuple[str | None, str]] = []
    for training in data.trainings:
        drawn.append((loss_plot(training), f"{training.name}: training loss"))
        drawn.append((validation_plot(training), f"{training.name}: on training images that are left out"))
    if data.alpha_sweep:
        chosen = data.alpha_sweep.get("chosen")
        drawn.append((alpha_plot(data.alpha_sweep), f"Interpolation with the base: α = {chosen} was chosen"))
        caption = f"What agreement costs: each point is an α, the one with the ring ({chosen}) was chosen"
        drawn.append((pareto_plot(data.alpha_sweep), caption))
    caption = "Invariance and sensitivity: above the line more is told apart than by the base"
    drawn.append((wordings_plot(data.comparison, data.control), caption))
    # Safe because plots.py builds it from numbers and escaped names.
    return [Plot(Markup(svg), caption) for svg, caption in drawn if svg is not None]


def _lists(pair: QueryPair, classes: Mapping[str, str]) -> list[list[ListOfImages]]:
    """Both lists of each model, the base first."""
    sides = {
        "base": (pair.base_caption, pair.base_rewording),
        "tuned": (pair.tuned_caption, pair.tuned_rewording),
    }
    return [
        [
            ListOfImages(
                model,
                side,
                [(image, classes.get(image, "none"), image in set(other), image == pair.image_id) for image in images],
            )
            for side, images, other in (("caption", caption, rewording), ("rewording", rewording, caption))
        ]
        for model, (caption, rewording) in sides.items()
    ]


def _by_stage(rejects: Sequence[RejectGroup]) -> list[tuple[str, int, list[RejectGroup]]]:
    stages = [(stage, list(groups)) for stage, groups in groupby(rejects, key=lambda group: group.stage)]
    return [(stage, sum(g.count for g in groups), sorted(groups, key=lambda g: -g.count)) for stage, groups in stages]


def style_rules(thumbnails: Mapping[str, bytes], classes: Mapping[str, str]) -> Markup:
    """Each picture once, as the background of its class, however often it is shown."""
    rules = (
        f".{classes[image_id]}{{background-image:url(data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})}}"
        for image_id, jpeg in sorted(thumbnails.items())
    )
    return Markup("\n".join(rules))


def figure(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}"


def difference(value: float, decimals: int = 1) -> str:
    text = f"{value:+.{decimals + 1}f}"
    return text.removeprefix("-").removeprefix("+") if float(text) == 0 else text.replace("-", "−")


def _share(value: float, reach: float) -> str:
    """Place of a difference on the interval bar's scale, as a CSS percentage."""
    return f"{50 + 50 * max(-1.0, min(1.0, value / reach)):.2f}%"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def thumbnail(image: Image.Image) -> bytes:
    """The middle square of an image as a JPEG file of 112 by 112 pixels, without metadata."""
    small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def render_audit(
    audit: Audit, names: Mapping[str, str], thumbnails: Mapping[str, bytes], facts: Mapping[str, Any]
) -> str:
    """The audit's page; every text is escaped.

    `names` are what models are called on it, `thumbnails` JPEGs by image id where images are at hand, and `facts` how
    the audit was made.
    """
    environment = page_environment()
    environment.filters["interval"] = _interval
    first = next(iter(audit.figures.values()))
    shown = {image for pair in audit.pairs[:WORST] for lists in pair.nearest.values() for ids in lists for image in ids}
    classes = {image: f"t{number}" if image in thumbnails else "" for number, image in enumerate(sorted(shown))}
    return environment.get_template("audit.html").render(
        audit=audit,
        headline=f"Two wordings of a query share {first['ao'].mean:.0f} % of what they find",
        names=names,
        metrics=("ao", "js"),
        worst=audit.pairs[:WORST],
        classes=classes if thumbnails else {},
        rules=style_rules({image: thumbnails[image] for image in shown if image in thumbnails}, classes),
        facts=facts,
    )


def _interval(value: Figure, signed: bool = False) -> str:
    if value.low is None or value.high is None:
        return ""
    form = difference if signed else figure
    return f"{form(value.low)} to {form(value.high)}"


WIDTH, HEIGHT, FONT = 460, 270, 12
LETTER = 6.5
"""Width of a usual letter: a page's font is not known when it is written."""
STYLES = (("accent", ""), ("ink", "6 4"), ("muted", "1.5 3"), ("muted", "7 3 1.5 3"), ("ink", ""))
"""Color and dashes of the first line, the second, …"""
MAX_POINTS = 300
PARETO = ("text_to_image_recall@", "ao@")
"""What is drawn against what, by the beginnings of their names."""


@dataclass(frozen=True)
class Line:
    """A labelled line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values along a range of the drawing."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    decimals: int

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, count: int, whole: bool = False) -> Axis:
        """An axis over all values and a bit more, with about `count` ticks at round values, whole ones if asked to."""
        low, high = min(values), max(values)
        margin = 0.04 * (high - low) or 0.5
        low, high = low - margin, high + margin
        size = 10 ** math.floor(math.log10((high - low) / count))
        step = next(step for step in (size * part for part in (1, 2, 5, 10)) if (high - low) / step <= count)
        step = max(step, 1) if whole else step
        ticks = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return cls(low, high, start, end, ticks, max(0, -math.floor(math.log10(step) + 1e-9)))

    def at(self, value: float) -> str:
        return f"{self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start):.1f}"

    def labels(self) -> list[tuple[str, str]]:
        """Where each tick lies, and its number."""
        return [(self.at(tick), f"{tick:.{self.decimals}f}".replace("-", "−")) for tick in self.ticks]


def line_chart(
    name: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    mark: float | None = None,
    labels: Sequence[tuple[float, float, str]] = (),
    ring: int | None = None,
) -> str:
    """Draw lines, the most important first, as an SVG element; equal arguments give equal bytes.

    `name` is read out by screen readers; `mark` is an x value with an upright line, `labels` are texts beside places,
    and `ring` is which of them has a ring around its place.
    """
    drawn = [Line(line.label, *_thinned(line.x, line.y), line.points) for line in lines]
    legend, top = _legend(drawn) if len(drawn) > 1 else ([], 10.0)
    y = Axis.over([value for line in drawn for value in line.y], HEIGHT - 44, top, 5)
    left, right = 28 + LETTER * max(len(label) for _, label in y.labels()), WIDTH - 10
    whole = all(float(value).is_integer() for line in lines for value in line.x)
    x = Axis.over([value for line in drawn for value in line.x], left, right, 6, whole)
    grid = [f"M{place} {top}V{y.start}" for place, _ in x.labels()]
    grid += [f"M{left} {place}H{right}" for place, _ in y.labels()]
    parts = [] if mark is None else [_rule(f"M{x.at(mark)} {top}V{y.start}", 7)]
    parts += [_rule("".join(grid), 0.8), _rule(f"M{left} {top}V{y.start}H{right}", 1.2)]
    parts += [_text(place, y.start + 16, label) for place, label in x.labels()]
    parts += [_text((left + right) / 2, HEIGHT - 8, x_label)]
    parts += [_text(left - 6, float(place) + 4, label, "end") for place, label in y.labels()]
    parts += [f'<g transform="rotate(-90)">{_text(-(top + y.start) / 2, 12, y_label)}</g>']
    for number, line in reversed([*enumerate(drawn)]):
        parts += _drawn(line, x, y, number)
    for number, (at_x, at_y, text) in enumerate(labels):
        place = float(x.at(at_x)), float(y.at(at_y))
        at_edge = place[0] > right - 24
        across, up = place[0] + (-9 if at_edge else 9), place[1] + (16 if number % 2 else -7)
        parts.append(_text(across, up, text, "end" if at_edge else "start", "ink"))
        if number == ring:
            parts.append(f'<circle cx="{place[0]}" cy="{place[1]}" r="7" style="{_stroke(0)}"/>')
    body = "\n".join([*parts, *legend])
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="{FONT}" '
        f'xmlns="http://www.w3.org/2000/svg">\n{body}\n</svg>'
    )


def loss_plot(training: Training) -> str | None:
    """Loss over steps, each part of a sum as its own line; None where the log has no loss."""
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
    """Figures on left-out training images over steps; None where the log has none."""
    logged = [line for line in training.lines if "validation" in line]
    if not logged:
        return None
    steps = [line["step"] for line in logged]
    names = list(logged[0]["validation"])
    lines = [Line(_words(name), steps, [line["validation"][name] for line in logged], True) for name in names]
    # A single line has no legend to be named in.
    figure = _words(names[0]) if len(names) == 1 else "left-out images"
    return line_chart(f"{training.name}: validation", lines, "step", f"{figure}, %")


def alpha_plot(sweep: Mapping[str, Any]) -> str | None:
    """What each figure gains or loses over α, against the base at α = 0; None where nothing was swept."""
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
    """Agreement against recall over α, both as changes from the base, the chosen α ringed; None without both."""
    points = sweep.get("alphas") or []
    names = [next((name for name in points[0] if name.startswith(head)), None) for head in PARETO] if points else [None]
    if len(points) < 2 or None in names:
        return None
    along, up = ([point[name] - points[0][name] for point in points] for name in names)
    labels = [(x, y, f"{point['alpha']:g}") for x, y, point in zip(along, up, points, strict=True)]
    chosen = next((place for place, point in enumerate(points) if point["alpha"] == sweep.get("chosen")), None)
    x, y = (f"{_words(str(name))}, change in points" for name in names)
    return line_chart("agreement against recall", [Line("α", along, up, True)], x, y, labels=labels, ring=chosen)


def wordings_plot(comparison: Sequence[Row], control: Sequence[Row] = ()) -> str | None:
    """Agreement on rewordings against agreement on foils, of each model; None where no benchmark has foils.

    On the line the gap between both is the base's: a model above it tells more apart for all that it agrees more.
    """
    benchmark = next((row.benchmark for row in comparison if row.kind == "wordings" and row.metric == "gap"), None)
    if benchmark is None:
        return None

    def place(rows: Sequence[Row], model: str) -> tuple[float, float]:
        figures = {row.metric: getattr(row, model) for row in rows if row.benchmark == benchmark}
        return figures["foil_ao@10"], figures["ao@10"]

    places = {"base": place(comparison, "base")}
    if control:
        places["captions alone"] = place(control, "tuned")
    places["tuned"] = place(comparison, "tuned")
    foils, rewordings = zip(*places.values(), strict=True)
    ends = [min(foils), max(foils)]
    gap = Line("the base's gap", ends, [rewordings[0] - foils[0] + end for end in ends])
    labels = [(*at, name) for name, at in places.items()]
    return line_chart(
        "rewordings against foils",
        [Line("models", foils, rewordings, True), gap],
        "AO@10 of foils, %",
        "AO@10 of rewordings, %",
        labels=labels,
        ring=len(labels) - 1,
    )


def _words(name: str) -> str:
    head, at, depth = name.partition("@")
    shown = {"ao": "AO", "js": "JS"}.get(head) or head.replace("text_to_image", "text→image").replace("_", " ")
    return shown + at + depth


def _drawn(line: Line, x: Axis, y: Axis, number: int) -> Iterator[str]:
    places = [(x.at(a), y.at(b)) for a, b in zip(line.x, line.y, strict=True)]
    yield f'<polyline points="{" ".join(map(",".join, places))}" style="{_stroke(number)}"/>'
    # A line of one point has no length.
    if line.points or len(places) == 1:
        color = STYLES[number % len(STYLES)][0]
        yield from (f'<circle cx="{a}" cy="{b}" r="3.2" style="fill:var(--{color})"/>' for a, b in places)


def _legend(lines: Sequence[Line]) -> tuple[list[str], float]:
    """Samples and labels from left to right in as many rows as they need, and where these end."""
    parts: list[str] = []
    left, baseline = 8.0, 14.0
    for number, line in enumerate(lines):
        width = 54 + LETTER * len(line.label)
        if left > 8 and left + width > WIDTH:
            left, baseline = 8.0, baseline + 18
        parts.append(f'<path d="M{left} {baseline - 4}h26" style="{_stroke(number)}"/>')
        parts.append(_text(left + 32, baseline, line.label, "start", "ink"))
        left += width
    return parts, baseline + 12


def _stroke(number: int) -> str:
    color, dashes = STYLES[number % len(STYLES)]
    return f"fill:none;stroke:var(--{color});stroke-width:2" + (f";stroke-dasharray:{dashes}" if dashes else "")


def _rule(path: str, width: float) -> str:
    return f'<path d="{path}" style="fill:none;stroke:var(--rule);stroke-width:{width}"/>'


def _text(x: float | str, y: float, text: str, anchor: str = "middle", color: str = "muted") -> str:
    style = f"text-anchor:{anchor};fill:var(--{color})"
    return f'<text x="{float(x):.1f}" y="{y:.1f}" style="{style}">{escape(text)}</text>'


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Means of equal runs of neighbors, where there are more points than a screen shows."""
    if len(x) <= MAX_POINTS:
        return x, y
    cuts = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, len(x)])
    means = (np.add.reduceat(np.asarray(side, float), cuts) / sizes for side in (x, y))
    return next(means).tolist(), next(means).tolist()
