"""Encodes every image of the ingested captions.

It resumes at shard granularity: each finished shard leaves its matrix in the artifact and its rows of index and rejects
in scratch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from paraclip.storage.features import EarlierFeatures, FeatureStore, write_index, write_shard
from paraclip.storage.parquet import PartWriter, iter_batches, read_table, write_table
from paraclip.tasks.models import BUILT_IN
from paraclip.tasks.run.run import StageContext, input_path
from paraclip.tasks.stages.features import EARLIER, list_images
from paraclip_core import tables
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.featurize import Featurizer, ImageFile
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import image_encoder_hash, pick_device, preprocess_hash
from paraclip_core.errors import ArtifactError, InputError
from paraclip_core.pictures import picture_place

log = logging.getLogger(__name__)

SHARD_IMAGES = 2048
"""Images per shard, the granularity at which an interrupted stage resumes."""


def encode(ctx: StageContext) -> dict[str, Any]:
    """Write the features of every image, ``index.parquet`` and rejects; return the metrics."""
    settings = ctx.settings
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    base = settings.model.base
    clip = built_in_clip(settings.model) if base == BUILT_IN else load_clip(base)
    clip.model.to(pick_device(settings.run.device))
    images = ctx.work.scratch / "images.parquet"
    total = list_images(ctx.inputs["ingest"].path / "captions", images)
    image_encoder = {"image_encoder_hash": image_encoder_hash(clip), "preprocess_hash": preprocess_hash(clip)}
    with Featurizer(
        clip,
        lambda name: ImageArchive(input_path(settings, name)),
        settings.features.batch_size,
        earlier=_earlier(ctx, image_encoder),
    ) as featurizer:
        shards, encoded = _encode_shards(ctx, featurizer, images, total)
    if not shards:
        write_shard(ctx.work.out, 0, torch.zeros(0, clip.embed_dim).half().numpy())
    rejected = _join(ctx, shards, total)
    return {
        "images": total - rejected,
        "encoded": encoded,
        "rejected": rejected,
        "shards": max(shards, 1),
        "embed_dim": clip.embed_dim,
        **image_encoder,
    }


def _earlier(ctx: StageContext, image_encoder: Mapping[str, str]) -> EarlierFeatures:
    """The features of the newest artifacts of the same image encoder."""
    stores = []
    finished = ctx.store.list("features")
    alike = [artifact for artifact in finished if image_encoder.items() <= artifact.manifest.metrics.items()]
    for artifact in alike[-EARLIER:]:
        try:
            stores.append(FeatureStore(ctx.store.download(artifact).path))
        except ArtifactError as error:
            log.warning("the features %s are not used, images are encoded again: %s", artifact.fingerprint, error)
    return EarlierFeatures(stores)


def _encode_shards(ctx: StageContext, featurizer: Featurizer, images: Path, total: int) -> tuple[int, int]:
    """Encode what is not encoded yet; return the numbers of shards and of newly encoded images."""
    size, shard, encoded = SHARD_IMAGES, -1, 0
    for shard, files in enumerate(_shards(images, size)):
        if not _part(ctx, "index", shard).exists():
            first = shard * size
            result = featurizer.encode(files, lambda done, first=first: ctx.progress(first + done, total))
            write_shard(ctx.work.out, shard, result.features)
            write_table(_part(ctx, "rejects", shard), _reject_rows(result.rejected))
            count = len(result.image_ids)
            columns = {"image_id": result.image_ids, "shard": [shard] * count, "row": range(count)}
            index = pa.table(columns | {"pixels": result.pixels}, schema=tables.FEATURE_INDEX)
            # Last, because it marks the shard as finished.
            write_table(_part(ctx, "index", shard), index)
            encoded += result.encoded
        ctx.progress(min((shard + 1) * size, total), total, encoded=encoded)
    return shard + 1, encoded


def _shards(images: Path, size: int) -> Iterator[list[ImageFile]]:
    batches = (batch.select(["image_id", "image_path", "images"]).to_pydict() for batch in iter_batches(images))
    files = (ImageFile(*row) for columns in batches for row in zip(*columns.values(), strict=True))
    while shard := list(islice(files, size)):
        yield shard


def _part(ctx: StageContext, kind: str, shard: int) -> Path:
    return ctx.work.scratch / f"{kind}-{shard:05d}.parquet"


def _reject_rows(rejected: list[tuple[ImageFile, str, str]]) -> pa.Table:
    rows = [
        {
            "source": file.archive,
            "source_row": (picture_place(file.name) or (None, None))[1],
            "reason": reason,
            "detail": f"image {file.image_id!r}: {detail}",
        }
        for file, reason, detail in rejected
    ]
    return pa.Table.from_pylist(rows, schema=tables.REJECTS)


def _join(ctx: StageContext, shards: int, total: int) -> int:
    """Join the shards' rows of index and rejects; return the number of rejected images."""
    rejects = PartWriter(ctx.work.out / "rejects", tables.REJECTS)
    for shard in range(shards):
        for batch in iter_batches(_part(ctx, "rejects", shard)):
            rejects.write(batch)
    rejects.close()
    if total and rejects.rows_written == total:
        first = read_table(_part(ctx, "rejects", 0))["detail"][0].as_py()
        raise InputError(f"none of the {total} images can be read; the first: {first}. See data.sources[].images")
    if rejects.rows_written:
        log.warning("%d of %d images cannot be read; see the rejects", rejects.rows_written, total)
    write_index(ctx.work.out, (read_table(_part(ctx, "index", shard)) for shard in range(shards)))
    return rejects.rows_written
