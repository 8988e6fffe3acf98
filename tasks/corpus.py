"""The corpus of a run, that is, what it trains on: captions with their images, or a log's queries with an image index.

Everything that differs between the two is in a row of its own. Parts that import torch, or the stages that import this
file, are dotted paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core import tables
from paraclip_core.captions.options import DataOptions
from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.query_log import QueryLog
from paraclip_core.captions.sources import SourceFile
from paraclip_core.evaluation.power import few_for_alpha
from paraclip_core.options import import_path
from paraclip_core.paraphrase.held_out import choose_captions, choose_queries
from paraclip_core.training.options import DEFAULT_RECIPES, LOG_RECIPES, RETENTION

if TYPE_CHECKING:
    from paraclip.storage.artifacts import Artifact
    from paraclip.storage.features import FeatureStore
    from paraclip_core.config import Settings

SEARCHED = 100_000
"""Images of an index that an evaluation searches at least."""
TRUSTED = "trusted"
"""Metric of the stage `features` that says that the index was not compared with any image."""


@dataclass(frozen=True)
class Corpus:
    """One kind of corpus."""

    schema: pa.Schema
    """The table of what ingest accepts."""
    pipeline: Callable[[DataOptions, Sequence[SourceFile]], CaptionPipeline | QueryLog]
    """Turns the rows of source files into that table."""
    checks: str
    """What is checked before anything is paid for: ``(run, folder, counts, planned)`` to notices for the user."""
    checked_first: tuple[str, ...]
    """Stages that take seconds and may save what the paraphrases would cost."""
    data: str
    """What a fine-tuning trains on: ``(context, model)`` to a `TuningData`."""
    recipes: tuple[str, ...]
    """The recipes that are tried if none is named."""
    retention: float | None
    """Percentage of the base's first ten images that a query has to keep, where no recall can be measured."""
    choose: Callable[[Sequence[str], str], pa.RecordBatch]
    """Chooses the held-out rows of a split that are paraphrased as queries."""
    benchmark: str
    """The kind of benchmark that these are."""
    searched: Callable[[FeatureStore, Sequence[str]], NDArray[np.int64]]
    """The rows of the stored features that queries for these images search."""
    few_for_alpha: Callable[[int, int, Sequence[float]], str | None]
    """A notice if so many held-out pairs and images (or queries) are too few to choose α from a grid."""
    trust: Callable[[Artifact], str]
    """How far image features that a run did not compute were checked; empty if it computed them."""
    links: bool = False
    """Whether image features exist, so that no image is encoded."""

    def call(self, part: str, *given: Any) -> Any:
        """Call a part that is a dotted path."""
        return import_path(part, "a corpus", "a function")(*given)


def corpus_of(settings: Settings) -> Corpus:
    """The corpus of a run with these settings."""
    return CAPTIONS if settings.data.index is None else QUERIES


def _of_images(store: FeatureStore, image_ids: Sequence[str]) -> NDArray[np.int64]:
    rows = store.find(list(dict.fromkeys(image_ids)))
    return rows[rows >= 0]


def _of_index(store: FeatureStore, image_ids: Sequence[str]) -> NDArray[np.int64]:
    return searched_images(len(store), _of_images(store, image_ids), SEARCHED)


def searched_images(images: int, needed: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Rows of an index to search, ascending: the needed ones, and others drawn at random, up to `most`.

    Each row has a random number that stays the same when rows are appended; those with the lowest are searched.
    """
    if images <= most:
        return np.arange(images)
    needed = np.unique(needed)
    numbers = np.random.Philox(key=np.zeros(2, np.uint64)).random_raw(images)
    numbers[needed] = 0
    count = max(most, len(needed))
    return np.sort(np.argpartition(numbers, count - 1)[:count])


def trust_note(features: Artifact) -> str:
    """How far an index was checked, in a sentence for report and model card."""
    metrics = features.manifest.metrics
    if metrics[TRUSTED]:
        return (
            f"the index of {metrics['images']:,} images is taken on trust: it was not compared with any image "
            "(data.index.images)"
        )
    return f"the index of {metrics['images']:,} images was compared with {metrics['compared_images']} of them"


CAPTIONS = Corpus(
    schema=tables.CAPTIONS,
    pipeline=CaptionPipeline,
    checks="paraclip.tasks.preflight:caption_notices",
    checked_first=(),
    data="paraclip.tasks.training.data:caption_data",
    recipes=DEFAULT_RECIPES,
    retention=None,
    choose=choose_captions,
    benchmark="paraphrased_retrieval",
    searched=_of_images,
    few_for_alpha=few_for_alpha,
    trust=lambda features: "",
)
"""Captions of images."""

QUERIES = Corpus(
    schema=tables.QUERY_LOG,
    pipeline=QueryLog,
    checks="paraclip.tasks.log_checks:query_notices",
    checked_first=("features",),
    data="paraclip.tasks.training.log_data:query_data",
    recipes=LOG_RECIPES,
    retention=RETENTION,
    choose=choose_queries,
    benchmark="query_log",
    searched=_of_index,
    few_for_alpha=lambda queries, held_out, grid: few_for_alpha(queries, held_out, grid, "queries", "queries"),
    trust=trust_note,
    links=True,
)
"""Queries of a log, which belong to no image, and an image index that exists."""
