"""Data of the training stages: images with their features, rows with their tokens, and the held-out part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from paraclip.storage.artifacts import Artifact
from paraclip.storage.features import FeatureRows, FeatureStore
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.run.run import StageContext
from paraclip_core.clip.encode import tokenize
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.ragged import Ragged
from paraclip_core.config import Settings
from paraclip_core.errors import ModelError, TrainingError
from paraclip_core.training.data import (
    CAPTION,
    CAPTION_ID,
    IMAGE_ROWS,
    TEXTS,
    CaptionStarts,
    OwnImages,
    RowBatch,
    TrainingImages,
    TrainingRows,
    spool_rows,
    spooled_image_rows,
    token_keys,
)
from paraclip_core.training.process import configure_kernels
from paraclip_core.training.validation import ValidationSet

log = logging.getLogger(__name__)

MAX_IMAGES = 2000
MAX_QUERIES = 10_000
ENOUGH_PAIRS = 100
"""Held-out pairs that can choose, if fewer than half have captions of their own."""
BLOCK_ROWS = 1 << 16
"""Rows whose captions are compared at once."""
Keep = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Selects rows by the feature row of their image."""


class Images:
    """Images that have features."""

    def __init__(self, artifact: Path) -> None:
        """Read the index of a features artifact."""
        self._store = FeatureStore(artifact)
        self._pixels = self._store.pixels

    @cached_property
    def matrix(self) -> FeatureRows:
        """Features, float16 [N, d], read from disk on access."""
        return self._store.view()

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """For each image, the row of the first one with the same pixels, [N]: equal images are one image."""
        order = np.lexsort((self._pixels[:, 1], self._pixels[:, 0]))
        ranked = self._pixels[order]
        new = np.concatenate([np.ones(min(len(order), 1), bool), (ranked[1:] != ranked[:-1]).any(axis=1)])
        keys = np.empty(len(order), np.int64)
        # The sort is stable, so the first of each group has the lowest row.
        keys[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
        return keys

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """A position in [0, 1) for each image, from its pixels, [N]: it does not change when images are added."""
        return self._pixels[:, 0] / 2.0**64

    def of_rows(self, spool: Path) -> OwnImages:
        """These, as the images of spooled rows."""
        return OwnImages(self.matrix, spooled_image_rows(spool), self.keys)

    def find(self, ids: pa.Array) -> NDArray[np.int64]:
        """Row of each image in the matrix, -1 if it has none."""
        return self._store.find(ids)


@dataclass(frozen=True)
class TuningData:
    """What every candidate is trained on, and what chooses among them."""

    rows: TrainingRows
    images: TrainingImages
    validation: ValidationSet


def spooled(
    ctx: StageContext, kinds: tuple[str, ...], stream: Iterator[RowBatch], counts: RowCounts, clip: ClipModel
) -> TrainingRows:
    """The rows of a stream on disk, with their texts of these kinds; read once, however often the stage is stopped."""
    return spool_rows(rows_folder(ctx), kinds, stream, lambda: asdict(counts), clip.token_dtype)


def rows_folder(ctx: StageContext) -> Path:
    """The folder of a stage's spooled rows."""
    return ctx.work.scratch / "rows"


def caption_data(ctx: StageContext, clip: ClipModel) -> TuningData:
    """Captions of images with their paraphrases, and held-out images."""
    images, counts = Images(ctx.inputs["features"].path), RowCounts()
    captions, paraphrases = ctx.inputs["ingest"].path / "captions", ctx.inputs["paraphrase_2"].path / "paraphrases"
    held_out = hold_out(captions, images, ctx.settings.finetune.validation)
    stream = paraphrase_rows(paraphrases, images, clip, counts, held_out.trains)
    rows = spooled(ctx, TEXTS, stream, counts, clip)
    own = enough(rows, images.of_rows(rows_folder(ctx)), "paraphrase_2")
    return TuningData(rows, own, validation_set(captions, held_out, clip, paraphrases, rows.texts[CAPTION]))


@dataclass
class RowCounts:
    """Counts of a table's rows by outcome."""

    read: int = 0
    without_image: int = 0
    """Left out: they name no image, or one without features."""
    held_out: int = 0
    """Left out: their image is for validation."""


@dataclass(frozen=True)
class HeldOut:
    """The images that training leaves out."""

    all: NDArray[np.bool_]
    """For each image of the matrix, whether it is held out."""
    gallery: NDArray[np.int64]
    """Rows of the images that validation searches, each picture once."""
    images: Images

    @property
    def ranks(self) -> bool:
        """Whether validation can compare weights: with a single image, all weights find it."""
        return len(self.gallery) > 1

    def trains(self, image_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are for training, by the feature row of their image."""
        return ~self.all[image_rows]

    def position(self, image_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of each image in the gallery, -1 if it is not in it."""
        return self._positions[self.images.keys[image_rows]]

    @cached_property
    def _positions(self) -> NDArray[np.int64]:
        positions = np.full(len(self.all), -1, np.int64)
        positions[self.gallery] = np.arange(len(self.gallery))
        return positions


def hold_out(captions: Path, images: Images, share: float) -> HeldOut:
    """Hold out the training images whose position is below `share`; at least one, if there are two.

    The gallery has the first 2,000 of them.
    """
    seen = np.zeros(len(images.keys), bool)
    for batch in _training_captions(captions, ("image_id",)):
        image_rows = images.find(batch["image_id"])
        seen[images.keys[image_rows[image_rows >= 0]]] = True
    candidates = np.flatnonzero(seen)
    candidates = candidates[np.argsort(images.places[candidates], kind="stable")]
    chosen = candidates[images.places[candidates] < share]
    if not len(chosen) and len(candidates) > 1:
        chosen = candidates[:1]
    held_out = np.isin(images.keys, chosen)
    return HeldOut(held_out, chosen[:MAX_IMAGES], images)


def enough(rows: TrainingRows, images: OwnImages, source: str) -> OwnImages:
    """Return the images of a stage's rows if both are enough to train on."""
    if len(rows) < 2:
        facts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in rows.facts.items())
        raise TrainingError(
            f"{len(rows)} rows of {source} can be trained on ({facts}), at least 2 are needed; "
            f"add captions of images that can be read, or loosen the filters (paraphrase.filters)"
        )
    if (images.keys[images.rows] == images.keys[images.rows[0]]).all():
        raise TrainingError(
            f"all {len(rows)} rows of {source} that can be trained on are of one image, and training learns to tell "
            "images apart; add captions of other images"
        )
    return images


def same_image_encoder(clip: ClipModel, features: Artifact) -> str:
    """Return the hash of the model's image encoder, which must be the one that made the features."""
    found, expected = image_encoder_hash(clip), features.manifest.metrics.get("image_encoder_hash")
    if expected != found:
        raise ModelError(
            f"the image encoder of {clip.reference} is {found}, but the features {features.fingerprint} come from "
            f"{expected}; run the features stage for this model"
        )
    return found


def use_threads(settings: Settings) -> None:
    """Set the number of torch's CPU threads from the settings, and configure its kernels, before any computation."""
    configure_kernels()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)


def caption_rows(
    folder: Path, images: Images, clip: ClipModel, counts: RowCounts | None = None, keep: Keep | None = None
) -> Iterator[RowBatch]:
    """Rows of the ingested training captions with the feature row of their image, in the order of the table."""
    for batch in _training_captions(folder, (CAPTION, CAPTION_ID, "image_id")):
        yield from _rows(batch, images, clip, (CAPTION,), counts, keep)


def _training_captions(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for batch in iter_batches(folder, [*columns, "split"]):
        yield batch.filter(pc.call_function("equal", [batch["split"], pa.scalar("train")]))


def paraphrase_rows(
    folder: Path,
    images: Images,
    clip: ClipModel,
    counts: RowCounts | None = None,
    keep: Keep | None = None,
    first_only: bool = False,
) -> Iterator[RowBatch]:
    """Rows that have both paraphrases, with the feature row of their image, in the order of the table.

    A caption has a row for each of its paraphrases, the best first; with `first_only`, only the best.
    """
    for whole in paraphrased(folder, first_only):
        yield from _rows(whole, images, clip, TEXTS, counts, keep)


def paraphrased(folder: Path, first_only: bool) -> Iterator[pa.RecordBatch]:
    """The rows of a table of paraphrases that have both, with their texts, ``caption_id`` and ``image_id``."""
    begins = CaptionStarts()
    for batch in iter_batches(folder, [*TEXTS, CAPTION_ID, "image_id"]):
        whole = batch.filter(batch[TEXTS[-1]].is_valid())
        yield whole.filter(pa.array(begins(whole[CAPTION_ID]))) if first_only else whole


def validation_set(
    captions: Path,
    held_out: HeldOut,
    clip: ClipModel,
    paraphrases: Path | None = None,
    trained: Ragged | None = None,
) -> ValidationSet:
    """Captions (and, with `paraphrases`, pairs) of the gallery's images; the first 10,000 of each in table order.

    For a caption with several paraphrases, only the best forms a pair. Equal captions have equal paraphrases, so a
    caption that is among those `trained` on, of another image, forms none, unless too few others would be left.
    """

    def keep(image_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return held_out.position(image_rows) >= 0

    images = held_out.images
    shown = caption_rows(captions, images, clip, keep=keep)
    texts, targets = _queries(shown, held_out)
    gallery = np.asarray(images.matrix[held_out.gallery])
    if paraphrases is None:
        return ValidationSet(gallery, texts["caption"], targets)
    rows = paraphrase_rows(paraphrases, images, clip, keep=keep, first_only=True)
    pairs, pair_targets = _queries(rows, held_out, ("caption", "paraphrase_2"))
    first, second = pairs["caption"], pairs["paraphrase_2"]
    if trained is not None:
        own = np.flatnonzero(~_repeated(first, trained))
        log.info("%d of %d held-out captions with paraphrases are trained on, too", len(first) - len(own), len(first))
        if len(own) >= min(ENOUGH_PAIRS, len(first) / 2):
            first, second, pair_targets = first.take(own), second.take(own), pair_targets[own]
    return ValidationSet(gallery, texts["caption"], targets, first, second, pair_targets)


def _repeated(texts: Ragged, trained: Ragged) -> NDArray[np.bool_]:
    """Which texts are among the captions that are trained on, bool [n]."""
    keys, repeated = token_keys(texts), np.zeros(len(texts), np.bool_)
    for start in range(0, len(trained), BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, len(trained)))
        repeated |= np.isin(keys, token_keys(trained.take(block)))
    return repeated


def _queries(
    rows: Iterator[RowBatch], held_out: HeldOut, kinds: Sequence[str] = ("caption",)
) -> tuple[dict[str, Ragged], NDArray[np.int64]]:
    parts: dict[str, list[Ragged]] = {kind: [] for kind in kinds}
    targets: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    wanted = MAX_QUERIES
    for batch in rows:
        for kind in kinds:
            parts[kind].append(batch[kind].take(np.arange(min(wanted, len(batch[kind])))))
        targets.append(held_out.position(batch[IMAGE_ROWS])[:wanted])
        wanted -= len(targets[-1])
        if not wanted:
            break
    return {kind: Ragged.concatenate(lists) for kind, lists in parts.items()}, np.concatenate(targets)


def _rows(
    batch: pa.RecordBatch,
    images: Images,
    clip: ClipModel,
    kinds: Sequence[str],
    counts: RowCounts | None,
    keep: Keep | None,
) -> Iterator[RowBatch]:
    image_rows = images.find(batch["image_id"])
    usable = image_rows >= 0
    wanted = usable.copy()
    if keep is not None:
        wanted[usable] = keep(image_rows[usable])
    if counts is not None:
        counts.read += len(image_rows)
        counts.without_image += int((~usable).sum())
        counts.held_out += int((usable & ~wanted).sum())
    chosen = batch.filter(pa.array(wanted))
    if not chosen.num_rows:
        return
    yield {**token_lists(chosen, kinds, clip), CAPTION_ID: chosen[CAPTION_ID], IMAGE_ROWS: image_rows[wanted]}


def token_lists(rows: pa.RecordBatch, kinds: Sequence[str], clip: ClipModel) -> dict[str, Ragged]:
    """The texts of these kinds, as the model's own tokenizer reads them."""
    return {kind: tokenize(clip, rows[kind].to_pylist()) for kind in kinds}
