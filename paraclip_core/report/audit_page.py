"""The audit as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paraclip_core.evaluation.audit import Audit, Figure
from paraclip_core.report.page import difference, figure, page_environment, style_rules

WORST = 12
"""Pairs that are shown."""


def render_audit(
    audit: Audit, names: Mapping[str, str], thumbnails: Mapping[str, bytes], expected: str, facts: Mapping[str, Any]
) -> str:
    """Fill the template; every text is escaped.

    Args:
        audit: the figures.
        names: model → how it is called on the page.
        thumbnails: image id → JPEG, for the images that are shown; empty where none are at hand.
        expected: what a repair would bring, in words.
        facts: how the audit was made, by name.

    Returns:
        The page, to be written as UTF-8.
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
        expected=expected,
        facts=facts,
    )


def _interval(value: Figure, signed: bool = False) -> str:
    if value.low is None or value.high is None:
        return ""
    form = difference if signed else figure
    return f"{form(value.low)} to {form(value.high)}"
