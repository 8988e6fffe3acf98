"""Types shared by all benchmarks: encoders, captions, image pools and outcomes; nothing here loads a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError, ModelError
from paraclip_core.evaluation.intervals import Sample


@dataclass(frozen=True)
class Measured:
    """The outcome of one benchmark for one model."""

    samples: Mapping[str, Sample]
    """By metric."""
    notes: Mapping[str, Any]
    """The protocol: split, number of images and captions, exclusions."""
    ranked: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Ranked lists worth showing, by name: rows of the image pool, shape [n, k]."""

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that are fractions, in percent."""
        return {name: 100.0 * sample.statistic() for name, sample in self.samples.items()}


@dataclass(frozen=True)
class Captions:
    """Captions of images: `image_ids[i]` is the image of `captions[i]`."""

    image_ids: Sequence[str]
    captions: Sequence[str]
    split: str
    """Their split, or a short description of their origin."""


TextEncoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""Maps n texts to float32 [n, d], rows of length 1."""

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge of a part of an image, in pixels."""


class Encoder(Protocol):
    """The interface that benchmarks need from a model."""

    @property
    def image_encoder_hash(self) -> str:
        """Hash of the image encoder: equal hashes mean equal image features."""
        ...

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts: float32 [n, d], rows of length 1."""
        ...

    def images(self, archive: Path, names: Sequence[str], boxes: Sequence[Box] | None = None) -> NDArray[np.float16]:
        """Encode images of a tar or folder, or a part (`boxes`) of each: float16 [n, d], rows normalized."""
        ...


@dataclass(frozen=True)
class ImagePool:
    """The images that a benchmark searches."""

    ids: Sequence[str]
    """Row i of the features is image ids[i]."""
    features: Callable[[Encoder], NDArray[np.floating]]
    """The features from a model's image encoder, [n, d]."""
    rows: dict[str, int] = field(init=False, repr=False, compare=False)
    """Row of each image."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", {image_id: row for row, image_id in enumerate(self.ids)})

    def find(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each image, or -1 if it is not in the pool; int64 [n]."""
        return np.fromiter((self.rows.get(image_id, -1) for image_id in image_ids), np.int64, len(image_ids))

    def check_queries(self, image_ids: Sequence[str]) -> None:
        """Check that an interval can be computed for the queries; those of images outside the pool do not count."""
        need_two(self.rows.keys() & set(image_ids))


@dataclass(frozen=True)
class Queries:
    """Distinct plain queries over a pool, and the images that they describe."""

    texts: Sequence[str]
    pool: ImagePool
    right: NDArray[np.int64]
    """Pairs of a query's number and a row of the pool that it describes, [r, 2]; empty if none is known."""
    groups: Sequence[str] = ()
    """A group of each query, such as how often it is asked; empty if there are none."""


def plain_queries(texts: Sequence[str], pool: ImagePool, image_ids: Sequence[str] = ()) -> Queries:
    """Each text once; `image_ids[i]` is the image that `texts[i]` describes, if that is known."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    rows = pool.find(image_ids).tolist()
    right = {(numbers[text], row) for text, row in zip(texts, rows, strict=False) if row >= 0}
    return Queries(list(numbers), pool, np.array(sorted(right), np.int64).reshape(-1, 2))


def need_two(images: Collection[str], queries: str = "its queries") -> None:
    """Check that the queries are of at least two images, as an interval requires."""
    if len(distinct := set(images)) == 1:
        raise BenchmarkError(
            f"all {queries} are of one image, {distinct.pop()!r}; an interval needs at least two: use a split or a "
            "file with more, or leave it out"
        )


def stored_pool(
    ids: Sequence[str], features: Callable[[], NDArray[np.floating]], image_encoder_hash: str | None
) -> ImagePool:
    """A pool with precomputed features; `image_encoder_hash` identifies the image encoder that computed them."""

    def checked(encoder: Encoder) -> NDArray[np.floating]:
        if image_encoder_hash is not None and not encoder.image_encoder_hash.startswith(image_encoder_hash):
            raise ModelError(
                f"the stored image features come from image encoder {image_encoder_hash}, the model has "
                f"{encoder.image_encoder_hash}; compute features with this model, or evaluate one with the same image "
                "encoder"
            )
        return features()

    return ImagePool(ids, checked)


def archive_pool(
    ids: Sequence[str], places: Sequence[tuple[Path, str]], boxes: Sequence[Box] | None = None
) -> ImagePool:
    """A pool of images in archives, encoded once per image encoder.

    Consecutive images of an archive are encoded together, so images should be ordered by archive. `places` has the
    archive and name of each image, `boxes` the part of each to encode.
    """
    features: dict[str, NDArray[np.float16]] = {}

    def encoded(encoder: Encoder) -> NDArray[np.float16]:
        if encoder.image_encoder_hash not in features:
            features[encoder.image_encoder_hash] = np.concatenate([*_encoded(encoder, places, boxes)])
        return features[encoder.image_encoder_hash]

    return ImagePool(ids, encoded)


def _encoded(
    encoder: Encoder, places: Sequence[tuple[Path, str]], boxes: Sequence[Box] | None
) -> Iterator[NDArray[np.float16]]:
    for file, part in groupby(enumerate(places), lambda entry: entry[1][0]):
        rows = [row for row, _ in part]
        names = [places[row][1] for row in rows]
        # An encoder without support for boxes still works for whole images.
        yield encoder.images(file, names) if boxes is None else encoder.images(file, names, [boxes[r] for r in rows])


def unique_features(encode: TextEncoder, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Encode each distinct text once: features by first use, float32 [u, d], and each text's row, int64 [n]."""
    rows: dict[str, int] = {}
    index = np.fromiter((rows.setdefault(text, len(rows)) for text in texts), np.int64, len(texts))
    if not rows:
        raise BenchmarkError("there is no text to measure; check the file or the split")
    distinct = list(rows)
    features = encode(distinct)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist()
    if bad:
        raise ModelError(f"the model gives non-finite features for {distinct[bad[0]]!r}; its weights are damaged")
    return features, index
