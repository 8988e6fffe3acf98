"""What changes for users, as part of a page: distribution, the queries that change most, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from paraclip_core.evaluation.churn import WORDS, ChangedQuery, Churn
from paraclip_core.evaluation.thresholds import QUANTILES
from paraclip_core.report.chart import Line, line_chart

SHOWN = 6
"""Number of changed queries on a page, for each image on it costs 3 kB."""


@dataclass(frozen=True)
class ChangedLists:
    """A query whose first images changed, ready to draw."""

    query: str
    shared: int
    models: Sequence[tuple[str, Sequence[tuple[str, str, bool, bool]]]]
    """Each model with its first images: image id, CSS class, whether the other model also has it, whether it is
    right."""


@dataclass(frozen=True)
class ChurnSection:
    """The values that ``churn.html`` shows."""

    churn: Churn
    depth: str
    """The length of the lists in words."""
    plot: Markup
    quantiles: Sequence[int]
    """Percentages of the table of cosines."""
    queries: Sequence[ChangedLists]
    pictures: bool
    """Whether pictures are shown; otherwise ids."""


def churn_section(churn: Churn | None, classes: Mapping[str, str]) -> ChurnSection | None:
    """Prepare the section; `classes` are the CSS classes of images with a thumbnail. None if nothing was compared."""
    if churn is None:
        return None
    depth = WORDS.get(churn.depth, str(churn.depth))
    chart = line_chart(
        "images that stay",
        [Line("queries", range(churn.depth + 1), churn.overlaps, True)],
        f"images that stay among the first {depth}",
        "share of queries, %",
    )
    queries = [_lists(query, classes) for query in changed_queries(churn)]
    # Safe because the chart is built from numbers and our own words.
    return ChurnSection(churn, depth, Markup(chart), QUANTILES, queries, bool(classes))


def changed_queries(churn: Churn) -> Sequence[ChangedQuery]:
    """The queries that a page shows: those that change most, without any that does not change."""
    return [query for query in churn.most_changed[:SHOWN] if list(query.base) != list(query.tuned)]


def images_of(churn: Churn | None) -> list[str]:
    """The images that the section shows."""
    queries = () if churn is None else changed_queries(churn)
    return [image for query in queries for image in (*query.base, *query.tuned)]


def _lists(query: ChangedQuery, classes: Mapping[str, str]) -> ChangedLists:
    models = [
        (model, [(image, classes.get(image) or "none", image in other, image in query.right) for image in images])
        for model, images, other in (("base", query.base, query.tuned), ("tuned", query.tuned, query.base))
    ]
    return ChangedLists(query.query, query.shared, models)
