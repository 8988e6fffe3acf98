"""A CLIP model with checked inputs, which encodes texts, Pillow images and image paths into unit vectors."""

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
from paraclip_core.text_lists import need_texts

TEXTS = 4096
"""Texts tokenized at once."""
ImageSource = Image.Image | str | Path


class Encoder(ClipModel):
    """A CLIP model that checks its inputs and reports unsupported ones clearly."""

    def encode_texts(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encode texts, in batches: float32 [n, embed_dim], rows of length 1.

        Raises:
            ConfigError: `texts` is a single text, or one of its entries is not a text.
        """
        rows = need_texts(texts, "texts")
        parts = [encode_texts(self, rows[n : n + TEXTS]) for n in range(0, len(rows), TEXTS)]
        return np.concatenate([np.zeros((0, self.embed_dim), np.float32), *parts])

    def encode_images(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Encode Pillow images or paths of image files, in batches: float32 [n, embed_dim], rows of length 1.

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
                f"entry {n} of the images is of type {type(image).__name__}, expected a Pillow image or a path"
            )
        yield rgb_image(image, f"entry {n} of the images")
