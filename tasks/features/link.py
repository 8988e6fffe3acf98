"""Checks an existing image index and links it.

``.npy`` files are read where they are; of a Parquet index the features are converted once, as they cannot be read row
by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.storage.features import FeatureRows, write_index, write_links, write_shard
from paraclip.storage.parquet import write_table
from paraclip.tasks.corpus import TRUSTED
from paraclip.tasks.run.run import StageContext, input_path
from paraclip.tasks.stages.index import check_width, index_of, open_index
from paraclip_core import tables
from paraclip_core.clip.encode import encode_images, encode_texts
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.index import ImageIndex, index_files
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash, pick_device
from paraclip_core.clip.verify_index import check_features
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, InputError

BLOCK = 65_536
"""Rows that are checked, and converted, at a time."""
SAMPLE = 64
"""Images that are encoded to compare them with the index."""
LOOKED_AT, SHUFFLES = 2000, 3
"""Images that decide whether an index belongs to a model, and comparisons with shuffled columns."""
CHANCE = 1.15
"""Below this alignment texts and images are taken for those of different models."""


def link(ctx: StageContext) -> dict[str, Any]:
    """Check the index and write its links (or converted shards) and ``index.parquet``; return the metrics."""
    settings = ctx.settings
    index, _ = open_index(settings)
    clip = load_clip(settings.model.base, pick_device(settings.run.device))
    check_width(index, clip.embed_dim, settings.model.base)
    files = index_files(input_path(settings, index_of(settings).features))
    counts = [_rows_of(file) for file in files]
    for number, (start, block) in enumerate(_blocks(index, files)):
        _check_rows(index, start, block)
        if not files:
            write_shard(ctx.work.out, number, block / np.linalg.norm(block, axis=1, keepdims=True))
            counts.append(len(block))
        ctx.progress(start + len(block), len(index))
    if files:
        # Read, not mapped: a file system that keeps big pages maps megabytes around each row that is touched.
        index = replace(index, features=FeatureRows(files, counts, normalized=False))
    compared = _compare(settings, index, clip)
    related = alignment(index, clip)
    if related < CHANCE:
        raise InputError(
            f"{index.source} has nothing to do with the texts of {settings.model.base}: names of things vary over its "
            f"images {related:.2f} times as much as over shuffled columns, and 1 is chance. It is an index of another "
            "model; name the model that it was made with in model.base"
        )
    if files:
        write_links(ctx.work.out, files)
    write_index(ctx.work.out, _index_tables(index.ids, counts))
    # An index with a bad row is refused as a whole.
    write_table(ctx.work.out / "rejects" / "part-000000.parquet", tables.REJECTS.empty_table())
    return {
        "images": len(index),
        "rejected": 0,
        "shards": len(counts),
        "embed_dim": clip.embed_dim,
        "image_encoder_hash": image_encoder_hash(clip),
        "compared_images": compared,
        "alignment": round(related, 3),
        TRUSTED: not compared,
    }


def _rows_of(file: Path) -> int:
    """Rows of a ``.npy`` file, which training reads one by one, so they must lie there one after the other."""
    matrix = np.load(file, mmap_mode="r")
    if not matrix.flags.c_contiguous:
        raise InputError(
            f"{file} is stored column by column (Fortran order, as a transposed array is saved); expected rows: save "
            "it again with numpy.save(name, numpy.ascontiguousarray(features))"
        )
    return len(matrix)


def _blocks(index: ImageIndex, files: Sequence[Path]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of consecutive rows with the number of their first one."""
    if not files:
        for start in range(0, len(index), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(index)))
            yield start, np.asarray(index.features[rows], np.float32)
        return
    first = 0
    for file in files:
        count = len(np.load(file, mmap_mode="r"))
        for start in range(0, count, BLOCK):
            # Mapped anew for each block: pages stay resident as long as they are mapped.
            yield first + start, np.asarray(np.load(file, mmap_mode="r")[start : start + BLOCK], np.float32)
        first += count


def _check_rows(index: ImageIndex, start: int, block: NDArray[np.float32]) -> None:
    norms = np.linalg.norm(block, axis=1)
    for bad, what in ((~np.isfinite(norms), "holds NaN or infinity"), (norms == 0, "holds nothing but zeros")):
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{index.source}: row {row} ({index.ids[row]!r}) {what}; encode this image again, or leave its row out "
                "of features and ids"
            )


def _compare(settings: Settings, index: ImageIndex, clip: ClipModel) -> int:
    """Compare a sample of the index with its images, if they are given; returns the number of compared images."""
    about = index_of(settings)
    if about.images is None:
        return 0
    if not index.named:
        raise ConfigError("data.index.images is given, but the index has no ids to find them by; give data.index.ids")
    rows = np.unique(np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).round().astype(int))
    places: list[int] = rows.tolist()
    names = [index.ids[place] for place in places]
    with ImageArchive(input_path(settings, about.images)) as archive:
        computed = encode_images(clip, [archive.open(name) for name in names])
    check = check_features(np.asarray(index.features[rows]), computed, names)
    if not check.valid:
        raise InputError(
            f"{index.source} is not an index of these images by {settings.model.base}: {check.detail}, the first that "
            f"differs is {check.differences[0]}. Either data.index.ids is in another order than the rows, or another "
            "model made the index (model.base)"
        )
    return len(names)


def alignment(index: ImageIndex, clip: ClipModel) -> float:
    """How much more the cosines of texts vary over the images of an index than over the same with shuffled columns.

    For texts and images of one model it is well above 1 (2.4 on Flickr8k), for those of different models about 1,
    whatever their norms and means. Texts are ImageNet's class names; both sides are centered.
    """
    texts = encode_texts(clip, list(IMAGENET_CLASSNAMES))
    rows = np.unique(np.linspace(0, len(index) - 1, LOOKED_AT).round().astype(np.int64))
    images = np.asarray(index.features[rows], np.float32)
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    images, texts = images - images.mean(0), texts - texts.mean(0)
    shuffles = (np.random.default_rng(number).permutation(images.shape[1]) for number in range(SHUFFLES))
    by_chance = np.mean([(texts @ images[:, order].T).std() for order in shuffles])
    return float((texts @ images.T).std() / by_chance)


def _index_tables(ids: Sequence[str], counts: Sequence[int]) -> Iterator[pa.Table]:
    first = 0
    for shard, count in enumerate(counts):
        for start in range(0, count, BLOCK):
            rows = np.arange(start, min(start + BLOCK, count))
            # In place of the hash of an image, which nobody has seen, the number of its row: all images are distinct.
            numbers = np.stack([rows + first, np.zeros_like(rows)], 1).astype("<u8")
            pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(numbers)])
            columns = [ids[first + start : first + start + len(rows)], [shard] * len(rows), rows, pixels]
            arrays = [pa.array(c, of.type) for c, of in zip(columns, tables.FEATURE_INDEX, strict=True)]
            yield pa.Table.from_arrays(arrays, schema=tables.FEATURE_INDEX)
        first += count
