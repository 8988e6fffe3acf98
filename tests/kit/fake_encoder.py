"""A deterministic encoder: texts and images become unit vectors by their words and names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paraclip_core.evaluation.base import Box, ImagePool, stored_pool


class WordEncoder:
    """A text is the sum of its words' random directions, an image the same for the words of its name."""

    def __init__(self, dimension: int = 32, seed: int = 0, encoder: str = "encoder") -> None:
        self._dimension, self._seed, self._image_encoder_hash = dimension, seed, encoder
        self.encoded_images = 0
        self._words: dict[str, np.ndarray] = {}

    @property
    def image_encoder_hash(self) -> str:
        return self._image_encoder_hash

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.stack([sum(map(self._word, text.casefold().split())) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def images(self, archive: Path, names: Sequence[str], boxes: Sequence[Box] | None = None) -> np.ndarray:
        """Vectors of images; that of a part of an image also shows where the part is."""
        self.encoded_images += len(names)
        shown = [Path(name).stem.replace("_", " ") for name in names]
        if boxes is not None:
            shown = [f"{words} {box[0]} {box[3]}" for words, box in zip(shown, boxes, strict=True)]
        return self.texts(shown).astype(np.float16)

    def _word(self, word: str) -> np.ndarray:
        if word not in self._words:
            seed = int.from_bytes(hashlib.blake2b(f"{self._seed}{word}".encode(), digest_size=8).digest())
            self._words[word] = np.random.default_rng(seed).normal(size=self._dimension)
        return self._words[word]


def word_pool(ids: Sequence[str], encoder: WordEncoder) -> ImagePool:
    """Images whose ids are the words that they show."""
    features = encoder.texts([image_id.replace("_", " ") for image_id in ids])
    return stored_pool(list(ids), lambda: features, encoder.image_encoder_hash)
