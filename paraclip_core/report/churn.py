"""What changes for users, as part of a page: distribution, the queries that change most, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from paraclip_core.evaluation.churn import WORDS, ChangedQuery, Churn
from paraclip_core.evaluation.thresholds import QUANTILES
from paraclip_core.report.chart import Line, line_chart
from paraclip_core.report.html import Shown, ranked

SHOWN = 6
"""Number of changed queries on a page, for each image on it costs 3 kB."""


@dataclass(frozen=True)
class ChurnSection:
    """The values that ``churn.html`` shows."""

    churn: Churn
    depth: str
    """The length of the lists in words."""
    plot: Markup
    quantiles: Sequence[int]
    """Percentages of the table of cosines."""
    queries: Sequence[tuple[ChangedQuery, Mapping[str, Sequence[Shown]]]]
    """Each query with both models' first images."""
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
    queries = []
    for query in changed_queries(churn):
        base = ranked(query.base, query.tuned, classes, query.right)
        tuned = ranked(query.tuned, query.base, classes, query.right)
        queries.append((query, {"base": base, "tuned": tuned}))
    # Safe because the chart is built from numbers and our own words.
    return ChurnSection(churn, depth, Markup(chart), QUANTILES, queries, bool(classes))


def changed_queries(churn: Churn) -> Sequence[ChangedQuery]:
    """The queries that a page shows: those that change most, without any that does not change."""
    return [query for query in churn.most_changed[:SHOWN] if list(query.base) != list(query.tuned)]


def images_of(churn: Churn | None) -> list[str]:
    """The images that the section shows."""
    queries = () if churn is None else changed_queries(churn)
    return [image for query in queries for image in (*query.base, *query.tuned)]
