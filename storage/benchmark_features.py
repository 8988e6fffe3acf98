"""Features of benchmarks' images, kept from run to run: a frozen image tower gives the same ones each time.

A file holds the features of one call: of so many images of an archive, or of parts of them. Its name is a hash of the
tower, of what computes it, and of the images' contents and parts, so nothing in it can be out of date; a folder that is
deleted is made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip.storage.files import write_atomic
from paraclip.storage.fingerprint import FileHashes, canonical_json

log = logging.getLogger(__name__)


class BenchmarkFeatures:
    """Looks features up, or computes and keeps them."""

    def __init__(self, folder: Path, hashes: FileHashes) -> None:
        """`folder` is made with the first file in it."""
        self._folder, self._hashes = folder, hashes

    def __call__(
        self,
        computed_by: str,
        archive: Path,
        names: Sequence[str],
        boxes: Sequence[Sequence[int]] | None,
        compute: Callable[[], NDArray[np.float16]],
    ) -> NDArray[np.float16]:
        """Features float16 [n, d] of the images of these names.

        Args:
            computed_by: the image tower's hash, the device and the library that computes.
            archive: tar, folder or Parquet file.
            names: the images.
            boxes: the part of each that counts; None: the whole images.
            compute: gives the features.
        """
        path = self._folder / f"{self._key(computed_by, archive, names, boxes)}.npy"
        features = _read(path, len(names))
        if features is None:
            features = compute()
            write_atomic(path, lambda file: np.save(file, features))
        return features

    def _key(self, computed_by: str, archive: Path, names: Sequence[str], boxes: Sequence[Sequence[int]] | None) -> str:
        files = [archive] if archive.is_file() else [archive / name for name in dict.fromkeys(names)]
        about: dict[str, Any] = {
            "computed_by": computed_by,
            "contents": list(self._hashes.of(files).values()),
            "names": list(names),
            "boxes": None if boxes is None else [list(box) for box in boxes],
        }
        return hashlib.sha256(canonical_json(about).encode()).hexdigest()[:32]


def _read(path: Path, count: int) -> NDArray[np.float16] | None:
    if not path.exists():
        return None
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s cannot be read (%s) and is made again", path, error)
        return None
    return features if features.shape[:1] == (count,) else None
