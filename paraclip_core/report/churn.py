"""What changes for users, as part of a page: distribution, the queries that change most, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paraclip_core.evaluation.churn import ChangedQuery, Churn
from paraclip_core.report.html import Shown, ranked

SHOWN = 6
"""Number of changed queries on a page, for each image on it costs 3 kB."""


def changed_queries(churn: Churn | None) -> Sequence[ChangedQuery]:
    """The queries that a page shows: those that change most, without any that does not change."""
    queries = () if churn is None else churn.most_changed[:SHOWN]
    return [query for query in queries if list(query.base) != list(query.tuned)]


def changed_lists(
    churn: Churn | None, classes: Mapping[str, str]
) -> list[tuple[ChangedQuery, Mapping[str, Sequence[Shown]]]]:
    """Each of these queries with both models' first images; `classes` are the CSS classes of images with a
    thumbnail."""
    return [
        (
            query,
            {
                "base": ranked(query.base, query.tuned, classes, query.right),
                "tuned": ranked(query.tuned, query.base, classes, query.right),
            },
        )
        for query in changed_queries(churn)
    ]


def images_of(churn: Churn | None) -> list[str]:
    """The images that the section shows."""
    return [image for query in changed_queries(churn) for image in (*query.base, *query.tuned)]
