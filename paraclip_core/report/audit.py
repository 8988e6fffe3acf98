"""The audit as a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paraclip_core.evaluation.audit import Audit, AuditedPair, Figure
from paraclip_core.report.churn import changed_lists, images_of
from paraclip_core.report.html import Shown, difference, figure, page_environment, ranked, style_rules

WORST = 12
"""Number of pairs that the audit shows."""


def render_audit(
    audit: Audit, names: Mapping[str, str], thumbnails: Mapping[str, bytes], facts: Mapping[str, Any]
) -> str:
    """The audit's page; every text is escaped.

    `names` are the models' names on the page, `thumbnails` are JPEGs by image id (empty without images), and `facts`
    describe how the audit was made.
    """
    environment = page_environment()
    environment.filters["interval"] = _interval
    first = next(iter(audit.figures.values()))
    images = shown_images(audit)
    classes = {image: f"t{number}" if image in thumbnails else "" for number, image in enumerate(sorted(images))}
    return environment.get_template("audit.html").render(
        audit=audit,
        headline=f"A query and its paraphrase share {first['ao'].mean:.0f} % of what they find",
        names=names,
        metrics=("ao", "js"),
        worst=[(pair, _lists(pair, classes)) for pair in audit.pairs[:WORST]],
        pictures=bool(thumbnails),
        changed=changed_lists(audit.churn, classes),
        rules=style_rules({image: thumbnails[image] for image in images if image in thumbnails}, classes),
        facts=facts,
    )


def _lists(pair: AuditedPair, classes: Mapping[str, str]) -> dict[str, list[list[Shown]]]:
    """Both lists of each model: the query's and the paraphrased query's."""
    return {
        model: [ranked(lists[0], lists[1], classes), ranked(lists[1], lists[0], classes)]
        for model, lists in pair.nearest.items()
    }


def shown_images(audit: Audit) -> set[str]:
    """The images on the page."""
    lists = [ids for pair in audit.pairs[:WORST] for both in pair.nearest.values() for ids in both]
    return {image for ids in lists for image in ids} | set(images_of(audit.churn))


def _interval(value: Figure, signed: bool = False) -> str:
    if value.low is None or value.high is None:
        return ""
    form = difference if signed else figure
    return f"{form(value.low)} to {form(value.high)}"
