"""Image files to features, in batches, while the next ones are being decoded."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.encode import encode_pixels, image_transform
from paraclip_core.clip.fold import folded
from paraclip_core.clip.images import ImageArchive, decode_image
from paraclip_core.errors import InputError, ModelError

__all__ = ["Featurised", "Featuriser", "ImageFile"]

AHEAD = 2
"""Batches that are decoded ahead of the image tower; bounds the memory."""


@dataclass(frozen=True)
class ImageFile:
    """Where an image lies."""

    image_id: str
    name: str
    """Its name in the archive."""
    archive: str
    """The archive, as the captions' table names it."""


@dataclass
class Featurised:
    """Features of the images that could be read, and the reasons why others could not."""

    features: np.ndarray
    """float16 [kept, embed_dim]."""
    image_ids: list[str] = field(default_factory=list)
    pixels: list[bytes] = field(default_factory=list)
    """16 bytes of blake2b over each image file."""
    rejected: list[tuple[ImageFile, str, str]] = field(default_factory=list)
    """Image, reason code and detail."""


@dataclass(frozen=True)
class _Decoded:
    file: ImageFile
    tensor: torch.Tensor | None = None
    digest: bytes = b""
    reason: str = ""
    detail: str = ""


class Featuriser:
    """Runs a model's image tower over image files, decoding in threads.

    Batches are cut by position, so a run that is taken up again at a list's start computes the same batches. Within
    fp32 another batch size may round differently; stored as float16, that shows in the last bit of few values.
    """

    def __init__(
        self, clip: ClipModel, archive: Callable[[str], ImageArchive], batch_size: int, workers: int | None = None
    ) -> None:
        """Prepare `clip`, whose image tower is not changed; `archive` opens an archive by its name in the table."""
        height, width = clip.preprocess_cfg["size"]
        self._clip, self._archive, self._batch_size = clip, archive, batch_size
        self._tower = folded(clip.visual, (height, width))
        self._transform = image_transform(clip)
        self._opened: dict[str, ImageArchive] = {}
        self._pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="decode")

    def __enter__(self) -> Featuriser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for archive in self._opened.values():
            archive.close()

    def encode(self, files: Sequence[ImageFile], on_batch: Callable[[int], None] = lambda done: None) -> Featurised:
        """Features of `files` in their order.

        Args:
            files: the images.
            on_batch: called after each batch with the number of images seen so far.

        Raises:
            InputError: an archive is missing or damaged. A damaged image is no error: it is among the rejected.
            ModelError: the tower's output for an image is not finite; the message names it.
        """
        result = Featurised(np.empty((0, self._clip.embed_dim), np.float16))
        parts, seen = [result.features], 0
        for batch in self._decoded(files):
            good = [item for item in batch if item.tensor is not None]
            result.rejected += [(item.file, item.reason, item.detail) for item in batch if item.tensor is None]
            if good:
                parts.append(self._features(good))
                result.image_ids += [item.file.image_id for item in good]
                result.pixels += [item.digest for item in good]
            seen += len(batch)
            on_batch(seen)
        result.features = np.concatenate(parts)
        return result

    def _decoded(self, files: Sequence[ImageFile]) -> Iterator[list[_Decoded]]:
        waiting: deque[list[Future[_Decoded]]] = deque()
        self._open(dict.fromkeys(file.archive for file in files))
        for start in range(0, len(files), self._batch_size):
            waiting.append([self._submit(file) for file in files[start : start + self._batch_size]])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]

    def _open(self, names: Collection[str]) -> None:
        """Have these archives open and no others: a webdataset has more tars than a process may have files open."""
        for name in self._opened.keys() - names:
            self._opened.pop(name).close()
        for name in names:
            if name not in self._opened:
                self._opened[name] = self._archive(name)

    def _submit(self, file: ImageFile) -> Future[_Decoded]:
        if self._opened[file.archive].in_order:
            return self._pool.submit(self._decode, file, self._read(file))
        return self._pool.submit(lambda: self._decode(file, self._read(file)))

    def _read(self, file: ImageFile) -> bytes | None:
        try:
            return self._opened[file.archive].read(file.name)
        except InputError:
            return None

    def _decode(self, file: ImageFile, data: bytes | None) -> _Decoded:
        if data is None:
            # The reason is told without the archive's full path, so that a moved data folder gives the same rejects.
            return _Decoded(file, reason="missing_image", detail=f"no readable image {file.name!r} in {file.archive}")
        try:
            image = decode_image(data, f"{file.archive}/{file.name}")
        except InputError as error:
            return _Decoded(file, reason="corrupt_image", detail=str(error))
        return _Decoded(file, self._transform(image), hashlib.blake2b(data, digest_size=16).digest())

    def _features(self, items: list[_Decoded]) -> np.ndarray:
        pixels = torch.stack([item.tensor for item in items if item.tensor is not None])
        features = encode_pixels(self._clip, pixels, tower=self._tower)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            file = items[int(bad[0])].file
            raise ModelError(
                f"the image tower of {self._clip.reference} gives values that are not finite for image "
                f"{file.image_id!r} ({file.archive}/{file.name}); its weights are damaged, fetch them again"
            )
        return features
