"""Line charts as inline SVG that takes its colours from the page, so that it follows the light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paraclip_core.report.data import Training

__all__ = ["Line", "alpha_plot", "line_chart", "loss_plot", "validation_plot"]

# Matplotlib knows no CSS variables, so it draws with colours that nothing else has, which are then replaced.
INK, ACCENT, MUTED, RULE = "#010203", "#010204", "#010205", "#010206"
THEME = {INK: "var(--ink)", ACCENT: "var(--accent)", MUTED: "var(--muted)", RULE: "var(--rule)"}
STYLES = ((ACCENT, "-"), (INK, "--"), (MUTED, ":"), (MUTED, "-."), (INK, "-"))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "path.simplify": True,
}
MAX_POINTS = 300


@dataclass(frozen=True)
class Line:
    """A labelled line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


def line_chart(name: str, lines: Sequence[Line], x_label: str, y_label: str, mark: float | None = None) -> str:
    """Draw lines as an SVG element; equal arguments give equal bytes.

    Args:
        name: read out by screen readers, and the salt of the SVG's ids, so that two charts on a page need two names.
        lines: what to draw, the most important first.
        x_label: name of the x axis.
        y_label: name and unit of the y axis.
        mark: an x value to mark with an upright line.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        if mark is not None:
            axes.axvline(mark, color=RULE, linewidth=5, zorder=0)
        for line, (colour, dashes) in zip(lines, STYLES * (len(lines) // len(STYLES) + 1), strict=False):
            x, y = _thinned(line.x, line.y)
            # A line of one point has no length.
            marker = "o" if line.points or len(x) == 1 else ""
            axes.plot(x, y, dashes, color=colour, linewidth=1.6, label=line.label, marker=marker, ms=3.5)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        whole = all(float(x).is_integer() for line in lines for x in line.x)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(length=0)
        if len(lines) > 1:
            figure.legend(
                loc="outside upper left", ncols=2 if len(lines) > 3 else len(lines), handlelength=2.2, columnspacing=1.2
            )
        buffer = io.StringIO()
        metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _inline(buffer.getvalue(), name)


def loss_plot(training: Training) -> str | None:
    """Loss over steps, each part of a sum as its own line; None where the log has no loss."""
    logged = [line for line in training.lines if "loss" in line]
    if not logged:
        return None
    steps = [line["step"] for line in logged]
    lines = [Line("sum" if _parts(logged) > 1 else "loss", steps, [line["loss"] for line in logged])]
    if _parts(logged) > 1:
        names = list(logged[0]["losses"])
        lines += [Line(_words(name), steps, [line["losses"][name] for line in logged]) for name in names]
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
    # The figure that α is chosen by comes first, in the accent colour.
    names.sort(key=lambda name: (not name.startswith("ao@"), not name.startswith("js@"), name))
    alphas = [point["alpha"] for point in points]
    lines = [Line(_words(name), alphas, [p[name] - points[0][name] for p in points], True) for name in names]
    return line_chart("alpha sweep", lines, "α  (0 = base, 1 = as trained)", "change, points", sweep.get("chosen"))


def _parts(lines: Sequence[Mapping[str, Any]]) -> int:
    return len(lines[0].get("losses", {}))


def _words(name: str) -> str:
    known = {"ao": "AO", "js": "JS"}
    head, at, depth = name.partition("@")
    return known.get(head, head.replace("text_to_image", "text→image").replace("_", " ")) + at + depth


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Means of equal runs of neighbours, where there are more points than a screen shows."""
    if len(x) <= MAX_POINTS:
        return x, y
    cuts = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, len(x)])
    return (np.add.reduceat(np.asarray(x, float), cuts) / sizes).tolist(), (
        np.add.reduceat(np.asarray(y, float), cuts) / sizes
    ).tolist()


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    # Names of groups repeat from chart to chart, and an id must be unique on the page; nothing refers to these.
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    label = name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    # A style element's "*" would reach the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
