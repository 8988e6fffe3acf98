"""What the search page shows: rankings by both models, and the captions and pictures of one index."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import ImageOps

from paraclip.storage.parquet import iter_batches
from paraclip.tasks.image_index import SearchTarget, load_models
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.expansion import mean_features
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.search import HELD_BYTES, Searcher
from paraclip_core.errors import InputError
from paraclip_core.paths import expand
from paraclip_core.training.choice import interpolate
from paraclip_core.training.process import free_memory

BASE, TUNED = 0.0, 1.0
"""The α of both models."""
HELD_SHARE = 0.5
"""Share of the free memory that the index may use; a larger index is read from disk on every search."""
SIDE, QUALITY = 320, 80
PICTURES = 4096
"""Thumbnails kept in memory, about 15 kB each."""


class Ranking(NamedTuple):
    """Rows of the index, best first."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Query(NamedTuple):
    """The mean feature of some texts, by the model at an α."""

    alpha: float
    texts: Sequence[str]
    """The query as typed, with its paraphrases if it is expanded."""


class SearchEngine:
    """Searches one index with the base and the tuned model."""

    def __init__(self, target: SearchTarget, device: str = "cpu") -> None:
        """Load both models once."""
        free = free_memory(torch.device("cpu")) or 0
        self.searcher = Searcher(target.index.features, target.index.ids, max(HELD_BYTES, int(HELD_SHARE * free)))
        models = load_models(target, self.searcher, device)
        self._base, self._tuned = models["base"], models["tuned"]
        self.repaired = target.base != target.tuned
        self._text_weights = {name: _text_weights(clip) for name, clip in models.items()}
        self._blended: ClipModel | None = None
        # One request at a time: the blended model and the index already use the whole processor.
        self._lock = threading.Lock()

    def search(self, queries: Sequence[Query], count: int) -> list[Ranking]:
        """Return the first `count` images for each query."""
        with self._lock:
            encoded = ((partial(encode_texts, self._model(query.alpha)), query.texts) for query in queries)
            return self._nearest(np.stack([mean_features(encode, [texts])[0] for encode, texts in encoded]), count)

    def like(self, row: int, count: int) -> Ranking:
        """Return the first `count` images for the image in this row of the index, which is the first of them."""
        with self._lock:
            return self._nearest(self.searcher.rows(np.array([row])), count)[0]

    def _nearest(self, vectors: NDArray[np.float32], count: int) -> list[Ranking]:
        return [Ranking(*ranking) for ranking in zip(*self.searcher.nearest(vectors, count), strict=True)]

    def _model(self, alpha: float) -> ClipModel:
        if alpha in (BASE, TUNED):
            return self._base if alpha == BASE else self._tuned
        if self._blended is None:
            self._blended = deepcopy(self._tuned)
        interpolate(_text_weights(self._blended), self._text_weights["base"], self._text_weights["tuned"], alpha)
        return self._blended


def _text_weights(clip: ClipModel) -> dict[str, torch.nn.Parameter]:
    """Every weight but the image encoder's."""
    return {name: weight for name, weight in clip.model.named_parameters() if not name.startswith("visual.")}


class Catalogue:
    """Images by their row in the index."""

    def __init__(self, target: SearchTarget) -> None:
        """Read a caption and the picture's location for each image."""
        self.ids = target.index.ids
        self.captions: pa.Array | None = None
        self.rows: dict[str, int] = {name: row for row, name in enumerate(self.ids)}
        self._archives: dict[str, ImageArchive] = {}
        # An archive's name is one shared object for all of its images.
        self._places: list[tuple[str, str] | None] = [None] * len(self.ids)
        self._given = None if target.images is None else _archive_of(target.images, self.ids)
        if target.captions is not None:
            self._read(target.captions.path / "captions")
        self.has_pictures = self._given is not None or any(self._places)
        """Whether the page can show pictures."""
        self._lock = threading.Lock()
        self.picture = lru_cache(PICTURES)(self._picture)

    def caption(self, row: int) -> str | None:
        """A caption of the image; None if there is none."""
        return None if self.captions is None else self.captions[row].as_py()

    def _read(self, folder: Path) -> None:
        captions: list[str | None] = [None] * len(self.ids)
        archives: dict[str, str] = {}
        for batch in iter_batches(folder, ["image_id", "caption", "images", "image_path"]):
            for row in batch.to_pylist():
                place = self.rows.get(row["image_id"])
                if place is None or captions[place] is not None:
                    continue
                captions[place] = row["caption"]
                if row["images"] and row["image_path"]:
                    self._places[place] = archives.setdefault(row["images"], row["images"]), row["image_path"]
        self.captions = pa.array(captions, pa.string())

    def _picture(self, row: int) -> bytes:
        """A small JPEG of the image, without metadata."""
        with self._lock:
            archive, name = self._place(row)
            image = archive.open(name)
        buffer = io.BytesIO()
        ImageOps.contain(image, (SIDE, SIDE)).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def _place(self, row: int) -> tuple[ImageArchive, str]:
        if self._given is not None:
            return self._given, self.ids[row]
        if (place := self._places[row]) is None:
            raise InputError(f"the location of the picture of {self.ids[row]!r} is unknown; give --images")
        images, name = place
        if images not in self._archives:
            self._archives[images] = ImageArchive(expand(images))
        return self._archives[images], name


def _archive_of(images: Path, ids: Sequence[str]) -> ImageArchive:
    archive = ImageArchive(images)
    if not any(archive.has(name) for name in ids):
        archive.close()
        raise InputError(
            f"{images} has none of the {len(ids)} images of the index (the first is {ids[0]!r}); expected their file "
            "names as the index's ids, see --ids"
        )
    return archive
