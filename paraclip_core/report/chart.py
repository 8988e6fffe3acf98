"""Line charts as inline SVG in the page's colors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT, FONT = 460, 270, 12
LETTER = 6.5
"""Assumed width of a letter, as the page's font is unknown when it is written."""
STYLES = (("accent", ""), ("ink", "6 4"), ("muted", "1.5 3"), ("muted", "7 3 1.5 3"), ("ink", ""))
"""Color and dashes of the first line, the second, …"""
MAX_POINTS = 300


@dataclass(frozen=True)
class Line:
    """A labeled line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values mapped to a range of the drawing."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    decimals: int

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, count: int, whole: bool = False) -> Axis:
        """An axis slightly longer than the range of values, with about `count` ticks at round (or `whole`) numbers."""
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
        """Position and label of each tick."""
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

    `name` is for screen readers; `mark` is an x value with a vertical line, `labels` are texts next to points, and
    `ring` is the one whose point is circled.
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


def _drawn(line: Line, x: Axis, y: Axis, number: int) -> Iterator[str]:
    places = [(x.at(a), y.at(b)) for a, b in zip(line.x, line.y, strict=True)]
    yield f'<polyline points="{" ".join(map(",".join, places))}" style="{_stroke(number)}"/>'
    # A line with a single point would be invisible.
    if line.points or len(places) == 1:
        color = STYLES[number % len(STYLES)][0]
        yield from (f'<circle cx="{a}" cy="{b}" r="3.2" style="fill:var(--{color})"/>' for a, b in places)


def _legend(lines: Sequence[Line]) -> tuple[list[str], float]:
    """Samples and labels from left to right in as many rows as needed, and the lower end of these rows."""
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
    """Means of equal runs of neighbors, if there are more points than a screen can show."""
    if len(x) <= MAX_POINTS:
        return x, y
    cuts = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, len(x)])
    means = (np.add.reduceat(np.asarray(side, float), cuts) / sizes for side in (x, y))
    return next(means).tolist(), next(means).tolist()
