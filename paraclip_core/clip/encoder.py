"""A CLIP model for users, who may give it anything: texts, images of Pillow and paths to unit vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from paraclip_core.clip.encode import encode_images, encode_texts
from paraclip_core.clip.images import rgb_image
from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import ConfigError

TEXTS = 4096
"""Texts that are tokenized at once."""
ImageSource = Image.Image | str | Path


def need_texts(texts: Iterable[str], what: str) -> list[str]:
    """The texts that a user gives as a list of `what`; anything else raises ConfigError."""
    if isinstance(texts, str):
        # Its letters would pass for a list of texts.
        raise ConfigError(f"expected a list of {what}, got the text {texts[:60]!r}; put it into a list")
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise ConfigError(f"expected a list of {what}, got {texts!r:.60}")
    for n, text in enumerate(rows := list(texts)):
        if not isinstance(text, str):
            raise ConfigError(f"entry {n} of the {what} is {text!r:.60}, expected text")
    return rows


class Encoder(ClipModel):
    """A CLIP model that encodes what a user gives it, and refuses the rest in words."""

    def encode_texts(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encode texts, in batches: float32 [n, embed_dim], rows of length 1.

        Raises:
            ConfigError: `texts` is a single text, or one of its entries is no text.
        """
        rows = need_texts(texts, "texts")
        parts = [encode_texts(self, rows[n : n + TEXTS]) for n in range(0, len(rows), TEXTS)]
        return np.concatenate([np.zeros((0, self.embed_dim), np.float32), *parts])

    def encode_images(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Encode images of Pillow or paths of image files, in batches: float32 [n, embed_dim], rows of length 1.

        Raises:
            ConfigError: `images` is a single image or path, or one of its entries is neither.
            InputError: a path does not exist, or an image cannot be decoded.
        """
        if isinstance(images, ImageSource | bytes) or not isinstance(images, Iterable):
            raise ConfigError(f"expected a list of images or paths, got {images!r:.100}; put a single one into a list")
        return encode_images(self, _rgb_images(images), dtype=torch.float32)


def _rgb_images(images: Iterable[ImageSource]) -> Iterator[Image.Image]:
    for n, image in enumerate(images):
        if not isinstance(image, ImageSource):
            raise ConfigError(
                f"entry {n} of the images is of type {type(image).__name__}, expected an image of Pillow or a path"
            )
        yield rgb_image(image, f"entry {n} of the images")
