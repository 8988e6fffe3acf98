"""Churn: how the first images for the same queries differ between the base and the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip_core.evaluation.metrics import average_overlap
from paraclip_core.evaluation.scores import CELLS, GALLERY_ROWS
from paraclip_core.evaluation.thresholds import BINS, Spread, Threshold, binned, matched, spread

DEPTH = 10
MOST = 20
"""Queries that are listed as those that change most."""
COUNTED = 1 << 27
"""Cosines of queries and images that are counted at most."""
WORDS = {10: "ten"}

Gallery = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Returns the features of the images of these rows, float32 [n, d], normalized."""


@dataclass(frozen=True)
class Found:
    """What one model finds for n queries."""

    rows: NDArray[np.int64]
    """Rows of the first images, best first, [n, k]."""
    first: NDArray[np.float32]
    """Cosine of each query and its first image, [n]."""
    counts: NDArray[np.int64]
    """Cosines of queries and all images, counted in bins (:data:`paraclip_core.evaluation.thresholds.BINS`)."""


@dataclass(frozen=True)
class ChangedQuery:
    """A query with the first images of both models, best first."""

    query: str
    shared: int
    """Number of images that are among the first of both."""
    base: Sequence[str]
    tuned: Sequence[str]
    right: Sequence[str]
    """The listed images that the query is known to describe."""


@dataclass(frozen=True)
class Relevance:
    """Changes for queries with a known right image; one with several right images counts once."""

    queries: int
    entered: int
    """Queries that have a right image among the first ten with the tuned model only."""
    left: int
    """Queries that have one among the first ten with the base only."""
    first_gained: int
    """Queries whose first image is right with the tuned model only."""
    first_lost: int
    """Queries whose first image is right with the base only."""


@dataclass(frozen=True)
class GroupChurn:
    """What changes for the queries of one group; shares are percentages."""

    queries: int
    overlap: float
    first_image_changes: float


@dataclass(frozen=True)
class Churn:
    """What changes for the same queries if the tuned model takes the base's place; shares are percentages."""

    queries: int
    images: int
    depth: int
    """Length of the compared lists: ten, or the number of images if there are fewer."""
    overlap: float
    """Mean share of the base's first images that are also among the tuned model's."""
    overlaps: Sequence[float]
    """Share of queries with 0, 1, … `depth` shared images."""
    first_image_changes: float
    """Share of queries whose first image is another one."""
    known: Relevance | None
    """None if no right image is known."""
    most_changed: Sequence[ChangedQuery]
    """The most changed first."""
    cosines: Mapping[str, Spread]
    """By model."""
    thresholds: Sequence[Threshold]
    benchmark: str = ""
    """The benchmark that the queries come from, if any."""
    groups: Mapping[str, GroupChurn] = field(default_factory=dict)
    """By how often a query is asked, if that is known: `head`, `body` and `tail`, each a third of all searches."""

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain if self.groups else {name: value for name, value in plain.items() if name != "groups"}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Churn:
        """The inverse of :meth:`as_json`."""
        parts = {
            "known": plain["known"] and Relevance(**plain["known"]),
            "most_changed": [ChangedQuery(**query) for query in plain["most_changed"]],
            "cosines": {model: Spread(**values) for model, values in plain["cosines"].items()},
            "thresholds": [Threshold(**row) for row in plain["thresholds"]],
            "groups": {name: GroupChurn(**values) for name, values in plain.get("groups", {}).items()},
        }
        return cls(**{**plain, **parts})

    def summary(self) -> dict[str, Any]:
        """The main figures, for ``summary.json``."""
        return {
            f"overlap@{self.depth}": self.overlap,
            "first_image_changes": self.first_image_changes,
            "queries": self.queries,
        }

    @property
    def sentence(self) -> str:
        """The main figures in words."""
        first = f"first {WORDS.get(self.depth, self.depth)}"
        parts = [
            f"For the same query, {self.overlap * self.depth / 100:.1f} of the {first} images stay on average",
            f"{self.first_image_changes:.0f} of 100 queries show another first image",
        ]
        if (known := self.known) is not None:
            parts += [
                f"of {known.queries:,} queries whose right image is known, {known.entered:,} got better (it entered "
                f"the {first}) and {known.left:,} got worse (it left them)",
                f"{known.first_gained:,} newly show it first and {known.first_lost:,} no longer",
            ]
        return "; ".join(parts) + "."


def find(vectors: NDArray[np.float32], gallery: Gallery, images: int) -> Found:
    """Search `images` images for each query, `vectors` [n, d] of length 1; ties go to the lower row.

    The gallery is read once, block by block. Cosines are counted for evenly spaced queries, as many as
    :data:`COUNTED` allows, with all images.
    """
    # Imported here, because it imports torch.
    import torch

    from paraclip_core.clip.search import best

    depth, count = min(DEPTH, images), len(vectors)
    values = torch.full((count, depth), -torch.inf)
    rows = torch.zeros((count, depth), dtype=torch.int64)
    counts = np.zeros(BINS, np.int64)
    counted = np.zeros(count, np.bool_)
    counted[np.linspace(0, count - 1, min(count, max(1, COUNTED // images))).round().astype(np.int64)] = True
    for start in range(0, images, GALLERY_ROWS):
        block = gallery(np.arange(start, min(start + GALLERY_ROWS, images)))
        step = max(1, CELLS // len(block))
        for at in range(0, count, step):
            part = slice(at, at + step)
            scores = vectors[part] @ block.T
            counts += binned(scores[counted[part]])
            largest, places = best(torch.from_numpy(scores), depth)
            both = torch.cat([values[part], largest], 1)
            # Ties keep their order: earlier blocks hold the lower rows.
            both, order = torch.sort(both, dim=1, descending=True, stable=True)
            values[part] = both[:, :depth]
            rows[part] = torch.cat([rows[part], places + start], 1).gather(1, order[:, :depth])
    return Found(rows.numpy(), values[:, 0].numpy(), counts)


def churn(
    queries: Sequence[str],
    base: Found,
    tuned: Found,
    image_ids: Sequence[str],
    right: NDArray[np.int64] | None = None,
    benchmark: str = "",
    groups: Sequence[str] = (),
) -> Churn:
    """Compare what both models find for the same queries among the same images.

    `right` [r, 2] has pairs of a query and the row of an image that it describes, `groups` the group of each query.
    """
    count, depth = base.rows.shape
    stays = (base.rows[:, :, None] == tuned.rows[:, None, :]).any(axis=2)
    shared = stays.sum(axis=1)
    right = np.zeros((0, 2), np.int64) if right is None else right
    agreement = average_overlap(base.rows, tuned.rows, depth)
    # The average overlap orders queries with equally many shared images.
    most = np.lexsort((agreement, shared))[:MOST]
    changed: list[ChangedQuery] = []
    numbers: list[int] = most.tolist()
    for query in numbers:
        before, after = (_named(found.rows[query], image_ids) for found in (base, tuned))
        known = {*_named(right[right[:, 0] == query, 1], image_ids)}
        listed = [image for image in dict.fromkeys(before + after) if image in known]
        changed.append(ChangedQuery(queries[query], int(shared[query]), before, after, listed))
    return Churn(
        queries=count,
        images=len(image_ids),
        depth=depth,
        overlap=_percent(shared.mean() / depth),
        overlaps=[_percent(share) for share in np.bincount(shared, minlength=depth + 1) / count],
        first_image_changes=_percent((base.rows[:, 0] != tuned.rows[:, 0]).mean()),
        known=_relevance(base.rows, tuned.rows, right),
        most_changed=changed,
        cosines={name: spread(found.first, found.counts) for name, found in (("base", base), ("tuned", tuned))},
        thresholds=matched(base.first, base.counts, tuned.counts, len(image_ids)),
        benchmark=benchmark,
        groups=_grouped(groups, shared / depth, base.rows[:, 0] != tuned.rows[:, 0]),
    )


def _grouped(groups: Sequence[str], overlap: NDArray[np.floating], changes: NDArray[np.bool_]) -> dict[str, GroupChurn]:
    names = np.array(groups)
    members = {name: names == name for name in sorted(set(groups), key=_place)}
    return {
        name: GroupChurn(int(mine.sum()), _percent(overlap[mine].mean()), _percent(changes[mine].mean()))
        for name, mine in members.items()
    }


def _place(group: str) -> tuple[int, str]:
    """Frequent queries come first."""
    order = ("head", "body", "tail")
    return (order.index(group) if group in order else len(order)), group


def _relevance(base: NDArray[np.int64], tuned: NDArray[np.int64], right: NDArray[np.int64]) -> Relevance | None:
    if not len(right):
        return None

    def found(rows: NDArray[np.int64], depth: int) -> NDArray[np.bool_]:
        """Whether any right image of each query is among its first `depth`."""
        hit = (rows[right[:, 0], :depth] == right[:, 1:]).any(axis=1)
        return np.bincount(right[hit, 0], minlength=len(rows)) > 0

    (ten_before, ten_after), (before, after) = ((found(base, k), found(tuned, k)) for k in (base.shape[1], 1))
    changes = (~ten_before & ten_after, ten_before & ~ten_after, ~before & after, before & ~after)
    return Relevance(len(np.unique(right[:, 0])), *(int(change.sum()) for change in changes))


def _named(rows: NDArray[np.int64], image_ids: Sequence[str]) -> list[str]:
    places: list[int] = rows.tolist()
    return [image_ids[place] for place in places]


def _percent(share: float) -> float:
    return round(100 * float(share), 2)
