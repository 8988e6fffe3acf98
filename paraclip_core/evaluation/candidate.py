"""A CLIP model as evaluation sees it: texts and images in, unit vectors out, loaded when it is first needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_images, encode_texts
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_architecture, image_tower_hash, pick_device, preprocess_hash

__all__ = ["Candidate"]

TEXTS = 4096


class Candidate:
    """One of the two models of a comparison."""

    def __init__(self, reference: str, device: str = "auto") -> None:
        """`reference` as :func:`paraclip_core.clip.load.load_clip` takes it; nothing is loaded yet."""
        self.reference, self._device = reference, device

    @cached_property
    def clip(self) -> ClipModel:
        """The loaded model."""
        return load_clip(self.reference, pick_device(self._device))

    @property
    def tower(self) -> str:
        """Hash of image tower and preprocessing, and how the tower computes."""
        return self._tower

    @cached_property
    def _tower(self) -> str:
        architecture = json.dumps(image_architecture(self.clip), sort_keys=True)
        return f"{image_tower_hash(self.clip)}-{preprocess_hash(self.clip)}-{architecture}"

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts in blocks: float32 [n, d], rows of length 1."""
        blocks = [encode_texts(self.clip, texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        return np.concatenate([np.zeros((0, self.clip.embed_dim), np.float32), *blocks])

    def images(self, archive: Path, names: Sequence[str]) -> NDArray[np.float16]:
        """Encode images of a tar or folder: float16 [n, d]."""
        with ImageArchive(archive) as images:
            return encode_images(self.clip, (images.open(name) for name in names))
