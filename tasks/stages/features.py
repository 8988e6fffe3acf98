"""Features: runs the base model's image encoder once over every image of the ingested captions.

The image encoder is frozen, so training and evaluation need nothing else of an image. Features of an image in an
earlier artifact of the same encoder are reused: rows are matched by the image's contents. The stage resumes at shard
granularity: each finished shard leaves its matrix in the artifact and its rows of index and rejects in scratch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip.storage.artifacts import SOURCE, Artifact, Draft
from paraclip.storage.features import EarlierFeatures, FeatureStore, write_index, write_shard
from paraclip.storage.parquet import (
    CONFIG,
    PartWriter,
    environment_error,
    iter_batches,
    parquet_files,
    read_table,
    write_table,
)
from paraclip.tasks.models import BUILT_IN, base_sources
from paraclip.tasks.run.run import Missing, Stage, StageContext, find_missing, input_path, need
from paraclip.tasks.stages import index
from paraclip_core import tables
from paraclip_core.clip.reference import IMAGE_WEIGHTS, place_free_name
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, InputError
from paraclip_core.lifetime import TempDir
from paraclip_core.pictures import picture_place

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run
    from paraclip_core.clip.featurize import Featurizer, ImageFile

log = logging.getLogger(__name__)

EARLIER = 4
"""Finished artifacts whose features can be reused; a fifth one hardly has the same images."""

READ_IMAGES = 10_000
"""Images whose contents are read to estimate how many are new."""

SHARD_IMAGES = 2048
"""Images per shard, the granularity at which an interrupted stage resumes."""

# The first caption of an image decides its position and its file. `spot` is the row's position among all parts.
UNIQUE_IMAGES = """
    SELECT image_id, arg_min(image_path, spot) AS image_path, arg_min(images, spot) AS images
    FROM (
        SELECT *, file_index * 1099511627776 + file_row_number AS spot
        FROM read_parquet($parts, hive_partitioning = false)
    )
    WHERE image_id IS NOT NULL AND image_path IS NOT NULL AND images IS NOT NULL
    GROUP BY image_id
    ORDER BY min(spot)
"""


def images_to_encode(run: Run, captions: Path) -> int | None:
    """Number of images of the captions in a folder that no earlier artifact of the same encoder has; None without one.

    For an unchanged archive, ids are compared; otherwise contents are, for a sample if there are very many images.
    """
    here = [one for one in run.store.list("features") if one.path.is_dir()]
    if not here:
        return None
    draft = run.node("features").draft
    alike = [one for one in here if _image_encoder(one.manifest) == _image_encoder(draft)]
    scenes = run.artifact("scenes") if "scenes" in draft.inputs else None
    if not alike or ("scenes" in draft.inputs and scenes is None):
        return None
    scenes = None if scenes is None else run.store.download(scenes)
    with TempDir("images-") as scratch:
        _list_images(captions, scratch / "images.parquet")
        images = read_table(scratch / "images.parquet")
    stores = []
    for artifact in alike[-EARLIER:]:
        # The stage reports that a damaged one is not used.
        with suppress(ArtifactError):
            stores.append((artifact.manifest.inputs, FeatureStore(run.store.download(artifact).path)))
    unknown = np.ones(images.num_rows, bool)
    for inputs, store in stores:
        same = [name for name in images["images"].unique().to_pylist() if _unchanged(name, draft.inputs, inputs)]
        same_archive = pc.call_function("is_in", [images["images"]], pc.SetLookupOptions(pa.array(same, pa.string())))
        unknown &= ~(same_archive.to_numpy() & (store.find(images["image_id"]) >= 0))
    left = np.flatnonzero(unknown)
    chosen = left[:: -(-len(left) // READ_IMAGES) or 1]
    earlier = EarlierFeatures([store for _, store in stores])
    new = sum(earlier(digest) is None for digest in _digests(run, scenes, images.take(pa.array(chosen))))
    return round(new * len(left) / max(len(chosen), 1))


def _image_encoder(draft: Draft) -> tuple[Any, dict[str, str]]:
    """The options and sources that decide the image encoder."""
    images = f"{SOURCE}images/", "ingest", "scenes"
    return draft.options.get("image_encoder"), {k: v for k, v in draft.inputs.items() if not k.startswith(images)}


def _unchanged(archive: str, now: Mapping[str, str], then: Mapping[str, str]) -> bool:
    name = "scenes" if "scenes" in now else f"{SOURCE}images/{archive}"
    return name in now and now[name] == then.get(name)


def _digests(run: Run, scenes: Artifact | None, images: pa.Table) -> Iterator[bytes]:
    """Hashes of the image files that can be read."""
    from paraclip_core.clip.images import ImageArchive

    for name in images["images"].unique().to_pylist():
        place = scenes.path / name if scenes is not None else input_path(run.settings, name)
        with ImageArchive(place) as archive:
            for path in images.filter(pc.field("images") == name)["image_path"].to_pylist():
                with suppress(InputError):
                    yield hashlib.blake2b(archive.read(path), digest_size=16).digest()


def _body(ctx: StageContext) -> dict[str, Any]:
    # Imported here: torch and open_clip take seconds to import, and a plan needs neither.
    import torch

    from paraclip_core.clip.built_in import built_in_clip
    from paraclip_core.clip.featurize import Featurizer
    from paraclip_core.clip.images import ImageArchive
    from paraclip_core.clip.load import load_clip
    from paraclip_core.clip.model import image_encoder_hash, pick_device, preprocess_hash

    settings, scenes = ctx.settings, ctx.inputs.get("scenes")
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    base = settings.model.base
    clip = built_in_clip(settings.model) if base == BUILT_IN else load_clip(base)
    clip.model.to(pick_device(settings.run.device))
    images = ctx.work.scratch / "images.parquet"
    total = _list_images(ctx.inputs["ingest"].path / "captions", images)
    image_encoder = {"image_encoder_hash": image_encoder_hash(clip), "preprocess_hash": preprocess_hash(clip)}
    with Featurizer(
        clip,
        lambda name: ImageArchive(scenes.path / name if scenes is not None else input_path(settings, name)),
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
    alike = [one for one in ctx.store.list("features") if image_encoder.items() <= one.manifest.metrics.items()]
    for artifact in alike[-EARLIER:]:
        try:
            stores.append(FeatureStore(ctx.store.download(artifact).path))
        except ArtifactError as error:
            log.warning("the features %s are not used, images are encoded again: %s", artifact.fingerprint, error)
    return EarlierFeatures(stores)


def _list_images(captions: Path, target: Path) -> int:
    """Write image_id, image_path and images of each image, in order of first mention; return their number.

    DuckDB works out of core, so memory use does not grow with the captions.
    """
    if not target.exists():
        temporary = target.with_suffix(".tmp")
        files = [str(path) for path in parquet_files(captions)]
        limits = {"threads": 2, "temp_directory": str(target.parent / "spill")}
        try:
            with duckdb.connect(":memory:", config=CONFIG | limits) as connection:
                connection.sql(UNIQUE_IMAGES, params={"parts": files}).write_parquet(str(temporary))
        except duckdb.Error as error:
            raise environment_error(error, target) or ArtifactError(
                f"cannot list the images of {captions}: {error}"
            ) from error
        temporary.replace(target)
    return pq.read_metadata(target).num_rows


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
    from paraclip_core.clip.featurize import ImageFile

    batches = (batch.select(["image_id", "image_path", "images"]).to_pydict() for batch in iter_batches(images))
    files = (ImageFile(*row) for columns in batches for row in zip(*columns.values(), strict=True))
    while shard := list(islice(files, size)):
        yield shard


def _part(ctx: StageContext, kind: str, shard: int) -> Path:
    return ctx.work.scratch / f"{kind}-{shard:05d}.parquet"


def _reject_rows(rejected: list[tuple[ImageFile, str, str]]) -> pa.Table:
    rows = [
        (
            file.archive,
            (picture_place(file.name) or (None, None))[1],
            reason,
            f"image {file.image_id!r}: {detail}",
            None,
        )
        for file, reason, detail in rejected
    ]
    names = ("source", "source_row", "reason", "detail", "caption_raw")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=tables.REJECTS)


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


def _options(run: Run) -> Mapping[str, Any]:
    """The options that decide the features: the image encoder, but not the text encoder or a local model's location."""
    model = run.settings.model
    if model.base == BUILT_IN:
        image_encoder: dict[str, Any] = {"weights": IMAGE_WEIGHTS, "embed_dim": model.embed_dim}
    else:
        image_encoder = {"base": place_free_name(model.base)}
    return {"image_encoder": image_encoder}


def _sources(run: Run) -> Mapping[str, str]:
    """Content hashes of the image archives and of a base in a local folder."""
    settings, contents = run.settings, dict(base_sources(run))
    need(_missing(run), settings)
    for source in settings.data.sources if settings.data.scenes is None else ():
        if source.images is None or f"images/{source.images}" in contents:
            continue
        contents[f"images/{source.images}"] = run.hashes.of_place(input_path(settings, source.images))
    return contents


def _inputs(settings: Settings) -> tuple[str, ...]:
    if settings.data.index is not None:
        return ()
    return ("ingest",) if settings.data.scenes is None else ("scenes", "ingest")


def _missing(run: Run) -> list[Missing]:
    """The sources' tars and folders of images that are not there."""
    sources = run.settings.data.sources if run.settings.data.scenes is None else ()
    return [
        missing
        for number, source in enumerate(sources)
        if source.images is not None
        for missing in find_missing(
            run.settings, f"data.sources[{number}].images", source.images, "a tar or folder with the captions' images"
        )
    ]


FEATURES = Stage(
    name="features",
    version=1,
    inputs=_inputs,
    options=lambda run: _options(run) if run.settings.data.index is None else index.options(run),
    body=lambda ctx: _body(ctx) if ctx.settings.data.index is None else index.body(ctx),
    sources=lambda run: _sources(run) if run.settings.data.index is None else index.sources(run),
    missing=lambda run: _missing(run) if run.settings.data.index is None else index.missing(run),
    about="Run every image through the frozen image encoder once, or link an existing index of such features.",
    pool="gpu",
    units=("encoded", "images"),
)
