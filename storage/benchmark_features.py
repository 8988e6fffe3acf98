"""Features of benchmark images, kept across runs.

A frozen image encoder gives the same ones each time.
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
    """Looks up the features of benchmark images, or has them computed and keeps them.

    A file holds the features of one call. Its name is a hash of all that they depend on, so none can be out of date.
    """

    def __init__(self, folder: Path, hashes: FileHashes) -> None:
        """`folder` is created with the first file in it."""
        self._folder, self._hashes = folder, hashes

    def __call__(
        self,
        computed_by: str,
        archive: Path,
        names: Sequence[str],
        boxes: Sequence[Sequence[int]] | None,
        compute: Callable[[], NDArray[np.float16]],
    ) -> NDArray[np.float16]:
        """Features float16 [n, d] of these images in an archive, or of the box of each, looked up or computed and kept.

        `computed_by` is the image encoder's hash, the device and the library that computes.
        """
        files = [archive] if archive.is_file() else [archive / name for name in dict.fromkeys(names)]
        about: dict[str, Any] = {
            "computed_by": computed_by,
            "contents": list(self._hashes.of(files).values()),
            "names": list(names),
            "boxes": None if boxes is None else [list(box) for box in boxes],
        }
        path = self._folder / f"{hashlib.sha256(canonical_json(about).encode()).hexdigest()[:32]}.npy"
        if path.exists():
            try:
                features = np.load(path, allow_pickle=False)
                if len(features) == len(names):
                    return features
            except (OSError, ValueError, EOFError) as error:
                log.warning("%s cannot be read (%s) and is recomputed", path, error)
        features = compute()
        write_atomic(path, lambda file: np.save(file, features))
        return features
