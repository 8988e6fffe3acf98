"""Data of a fine-tuning from a query log and an image index: queries, and the images that held-out ones search.

No query belongs to an image for training. Held-out queries are chosen by the hash of their words' stems, so they stay
the same when the log grows, and word forms of one query are on one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip.storage.features import FeatureStore
from paraclip.tasks.corpus import searched_images
from paraclip.tasks.run.run import StageContext
from paraclip.tasks.training.data import (
    MAX_QUERIES,
    RowCounts,
    TuningData,
    paraphrased,
    spooled,
    token_lists,
)
from paraclip_core.captions.stems import stem_keys
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.errors import TrainingError
from paraclip_core.training.data import CAPTION, CAPTION_ID, TEXTS, DrawnImages, RowBatch
from paraclip_core.training.validation import ValidationSet

SEARCHED = 20_000
"""Images of the index that held-out queries search."""
FEWEST = 2
"""Queries that training needs at least, to tell them apart."""
DRAWN = 1024
"""Images of the index over which rankings are compared in a step; see dev/log/2026-12.md."""


def is_held_out(queries: pa.Array, share: float) -> NDArray[np.bool_]:
    """Which queries are held out from training, by the stems of their words; bool [n]."""
    return stem_keys(queries.to_pylist(), "held out for the choice") < share * 2.0**64


def query_data(ctx: StageContext, clip: ClipModel) -> TuningData:
    """Queries with their paraphrases, and images of the index."""
    paraphrases, store = ctx.inputs["paraphrase_2"].path / "paraphrases", FeatureStore(ctx.inputs["features"].path)
    share, counts = ctx.settings.finetune.validation, RowCounts()
    rows = spooled(ctx, TEXTS, log_rows(paraphrases, share, counts, clip), counts, clip)
    if len(rows) < FEWEST:
        raise TrainingError(
            f"{len(rows)} queries can be trained on, at least {FEWEST} are needed; add queries, or loosen the filters "
            "(paraphrase.filters)"
        )
    validation = log_validation(paraphrases, store, share, clip)
    return TuningData(rows, DrawnImages(store.view(), DRAWN), validation)


def log_rows(folder: Path, share: float, counts: RowCounts, clip: ClipModel) -> Iterator[RowBatch]:
    """Rows of the queries to train on that have both paraphrases, in table order."""
    for whole in paraphrased(folder, first_only=False):
        held_out = is_held_out(whole[CAPTION], share)
        counts.read += whole.num_rows
        counts.held_out += int(held_out.sum())
        if len(rows := whole.filter(pa.array(~held_out))):
            yield {**token_lists(rows, TEXTS, clip), CAPTION_ID: rows[CAPTION_ID]}


def log_validation(folder: Path, store: FeatureStore, share: float, clip: ClipModel) -> ValidationSet:
    """Held-out queries, at most 10,000, each with its best paraphrase, and images of the index that they search.

    The images are drawn at random, 20,000 at most.
    """
    kinds, wanted = (CAPTION, TEXTS[-1]), MAX_QUERIES
    parts: dict[str, list[Ragged]] = {kind: [] for kind in kinds}
    for whole in paraphrased(folder, first_only=True):
        rows = whole.filter(pa.array(is_held_out(whole[CAPTION], share))).slice(0, wanted)
        for kind, tokens in token_lists(rows, kinds, clip).items():
            parts[kind].append(tokens)
        wanted -= len(rows)
    gallery = searched_images(len(store), np.zeros(0, np.int64), SEARCHED)
    captions, paraphrases = map(Ragged.concatenate, parts.values())
    return ValidationSet(np.asarray(store.view()[gallery]), captions, first=captions, second=paraphrases)
