"""What the page knows of each image: its id, a caption, and where its picture lies."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import ImageOps

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.image_index import SearchTarget
from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import InputError
from paraclip_core.paths import user_path

SIDE, QUALITY = 320, 80
PICTURES = 4096
"""Thumbnails that stay in memory, some 15 kB each."""


class Catalogue:
    """Images by their row in the index."""

    def __init__(self, target: SearchTarget, store: ArtifactStore) -> None:
        """Read a caption and the picture's place of each image."""
        self.ids = target.index.ids
        self._places: dict[str, int] = {name: row for row, name in enumerate(self.ids)}
        self.captions: pa.Array | None = None
        self._archives: dict[str, ImageArchive | None] = {}
        self._folders: list[str] = []
        self._folder_of: NDArray[np.int16] = np.full(len(self.ids), -1, np.int16)
        self._paths: pa.Array | None = None
        self._given = None if target.images is None else _archive_of(target.images, self.ids)
        self._scenes = _scenes(target, store)
        if target.captions is not None:
            self._read(target)
        self._lock = threading.Lock()
        self.picture = lru_cache(PICTURES)(self._picture)

    def row(self, image_id: str) -> int | None:
        """The row of an image; None where the index has none of this id."""
        return self._places.get(image_id)

    def caption(self, row: int) -> str | None:
        """A caption of the image; None where there is none."""
        return None if self.captions is None else self.captions[row].as_py()

    @property
    def has_pictures(self) -> bool:
        """Whether the page can show pictures."""
        return self._given is not None or bool(self._folders)

    def matching(self, text: str) -> NDArray[np.int64] | None:
        """Rows whose id or caption holds the text, whatever its case; None for all of them."""
        if not text.strip():
            return None
        columns = [pa.array(self.ids, pa.string()), *([] if self.captions is None else [self.captions])]
        options = pc.MatchSubstringOptions(text.strip(), ignore_case=True)
        mask = np.zeros(len(self.ids), bool)
        for column in columns:
            mask |= np.asarray(pc.call_function("match_substring", [column], options).fill_null(False))
        return np.flatnonzero(mask)

    def _read(self, target: SearchTarget) -> None:
        assert target.captions is not None
        captions: list[str | None] = [None] * len(self.ids)
        paths: list[str | None] = [None] * len(self.ids)
        folders: dict[str, int] = {}
        for batch in iter_batches(target.captions.path / "captions", ["image_id", "caption", "images", "image_path"]):
            for row in batch.to_pylist():
                place = self._places.get(row["image_id"])
                if place is None or captions[place] is not None:
                    continue
                captions[place] = row["caption"]
                if row["images"] and row["image_path"]:
                    paths[place] = row["image_path"]
                    self._folder_of[place] = folders.setdefault(row["images"], len(folders))
        self.captions, self._paths = pa.array(captions, pa.string()), pa.array(paths, pa.string())
        self._folders = list(folders)

    def _picture(self, row: int) -> bytes:
        """A small JPEG of the image, without metadata."""
        with self._lock:
            archive, name = self._place(row)
            image = archive.open(name)
        small = ImageOps.contain(image, (SIDE, SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def _place(self, row: int) -> tuple[ImageArchive, str]:
        if self._given is not None:
            return self._given, self.ids[row]
        folder = int(self._folder_of[row])
        if self._paths is None or folder < 0:
            raise InputError(f"it is not known where the picture of {self.ids[row]!r} lies; give --images")
        images = self._folders[folder]
        if images not in self._archives:
            path = self._scenes / images if self._scenes is not None else user_path(images)
            self._archives[images] = ImageArchive(path) if path.exists() else None
        archive = self._archives[images]
        if archive is None:
            raise InputError(f"the images {images} are not here; give --images")
        return archive, self._paths[row].as_py()


def _archive_of(images: Path, ids: Sequence[str]) -> ImageArchive:
    archive = ImageArchive(images)
    if not any(_holds(archive, name) for name in ids):
        raise InputError(
            f"{images} has none of the {len(ids)} images of the index (the first is {ids[0]!r}); expected their file "
            "names as the index's ids, see --ids"
        )
    return archive


def _holds(archive: ImageArchive, name: str) -> bool:
    try:
        archive.read(name)
    except InputError:
        return False
    return True


def _scenes(target: SearchTarget, store: ArtifactStore) -> Path | None:
    """The artifact that holds the demo's pictures, where the captions come from it."""
    fingerprint = None if target.captions is None else target.captions.manifest.inputs.get("scenes")
    scenes = None if fingerprint is None else store.find("scenes", fingerprint)
    return None if scenes is None else scenes.path
