"""The encoder of a model under evaluation, as it is or with expanded queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.expansion import Heads, heads_model, mean_features, read_heads
from paraclip_core.errors import UnknownQueriesError
from paraclip_core.evaluation.base import Box
from paraclip_core.paths import expand
from paraclip_core.text_safety import one_line

if TYPE_CHECKING:
    from PIL import Image

    from paraclip_core.clip.images import ImageArchive
    from paraclip_core.clip.model import ClipModel

TEXTS = 4096
"""Texts encoded at once."""
IMAGES = 64
"""Number of images between progress reports."""

Features: TypeAlias = "NDArray[np.float16]"
FeatureCache = Callable[[str, Path, Sequence[str], "Sequence[Box] | None", Callable[[], Features]], Features]
"""Called with the encoder's identity, archive, names, boxes and the computation; returns cached or new features."""
Watch = Callable[[str, int, int], None]
"""Called now and then with the kind of input, `texts` or `images`, the number done and the total of a call."""


def unwatched(what: str, done: int, of: int) -> None:
    """Report nothing."""


class ModelEncoder:
    """A model under evaluation, loaded on first use."""

    # Loading models imports torch, which takes seconds, and planning a run measures nothing.

    def __init__(self, reference: str, device: str = "auto", keep: FeatureCache | None = None) -> None:
        """`reference` as in :func:`paraclip_core.clip.load.load_clip`; `keep` caches features across runs."""
        self.reference, self._device, self._keep = reference, device, keep

    @cached_property
    def clip(self) -> ClipModel:
        from paraclip_core.clip.load import load_clip
        from paraclip_core.clip.model import pick_device

        return load_clip(self.reference, pick_device(self._device))

    @property
    def image_encoder_hash(self) -> str:
        """Hash of the image encoder, its preprocessing and its architecture options."""
        return self._image_encoder_hash

    # Type checkers do not accept a cached property where the protocol has a property.
    @cached_property
    def _image_encoder_hash(self) -> str:
        from paraclip_core.clip.model import image_architecture, image_encoder_hash, preprocess_hash

        architecture = json.dumps(image_architecture(self.clip), sort_keys=True)
        return f"{image_encoder_hash(self.clip)}-{preprocess_hash(self.clip)}-{architecture}"

    def texts(self, texts: Sequence[str], watch: Watch = unwatched) -> NDArray[np.float32]:
        """Encode texts in blocks: float32 [n, d], rows of length 1."""
        from paraclip_core.clip.encode import encode_texts

        blocks = [np.zeros((0, self.clip.embed_dim), np.float32)]
        for start in range(0, len(texts), TEXTS):
            blocks.append(encode_texts(self.clip, texts[start : start + TEXTS]))
            watch("texts", min(start + TEXTS, len(texts)), len(texts))
        return np.concatenate(blocks)

    def images(
        self, archive: Path, names: Sequence[str], boxes: Sequence[Box] | None = None, watch: Watch = unwatched
    ) -> Features:
        """Encode images, or a part of each, of a tar, folder or Parquet file: float16 [n, d]."""
        from paraclip_core.clip.encode import encode_images
        from paraclip_core.clip.images import ImageArchive

        def opened(images: ImageArchive) -> Iterator[Image.Image]:
            for number, name in enumerate(names, 1):
                image = images.open(name)
                yield image if boxes is None else image.crop(boxes[number - 1])
                if number % IMAGES == 0 or number == len(names):
                    watch("images", number, len(names))

        def compute() -> Features:
            with ImageArchive(archive) as images:
                return encode_images(self.clip, opened(images))

        if self._keep is None:
            return compute()
        computed_by = f"{self.image_encoder_hash} {self.clip.device.type} {version('torch')}"
        return self._keep(computed_by, archive, names, boxes, compute)


class ExpandedEncoder(ModelEncoder):
    """The model of a heads file: a text's feature is the mean with those of its paraphrases in the file."""

    def __init__(self, heads: Heads, device: str = "auto", keep: FeatureCache | None = None) -> None:
        super().__init__(heads.model, device, keep)
        self._heads = heads

    def texts(self, texts: Sequence[str], watch: Watch = unwatched) -> NDArray[np.float32]:
        """Encode texts with their paraphrases: float32 [n, d], rows of length 1.

        Raises:
            UnknownQueriesError: the heads file lacks some of the texts.
        """
        groups = {text: self._heads.group(text) for text in texts}
        missing = [text for text, group in groups.items() if group is None]
        if missing:
            raise UnknownQueriesError(
                f"{self._heads.path} lacks {len(missing)} of {len(groups)} texts, first {one_line(missing[0])!r}; "
                "to an expanded model every text of a benchmark is a query: add them with `paraclip expand`",
                missing,
            )

        def encode(several: Sequence[str]) -> NDArray[np.float32]:
            return super(ExpandedEncoder, self).texts(several, watch)

        return mean_features(encode, [groups[text] or [text] for text in texts])


def model_encoder(reference: str, device: str = "auto", keep: FeatureCache | None = None) -> ModelEncoder:
    """The encoder of a model, or of a heads file's model with its expanded queries."""
    if heads_model(expand(reference)) is None:
        return ModelEncoder(reference, device, keep)
    return ExpandedEncoder(read_heads(expand(reference)), device, keep)


@dataclass(frozen=True)
class WatchedEncoder:
    """A model whose progress is reported while one benchmark is measured."""

    encoder: ModelEncoder
    watch: Watch

    @property
    def image_encoder_hash(self) -> str:
        return self.encoder.image_encoder_hash

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encoder.texts(texts, self.watch)

    def images(self, archive: Path, names: Sequence[str], boxes: Sequence[Box] | None = None) -> Features:
        return self.encoder.images(archive, names, boxes, self.watch)
