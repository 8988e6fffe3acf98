"""Features: runs the base model's image encoder once over every image of the ingested captions.

The image encoder is frozen, so training and evaluation need nothing else of an image. Features of an image in an
earlier artifact of the same encoder are reused: rows are matched by the image's contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip.storage.artifacts import SOURCE, Draft
from paraclip.storage.features import EarlierFeatures, FeatureStore
from paraclip.storage.parquet import CONFIG, parquet_files, read_table
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import BUILT_IN, base_sources
from paraclip.tasks.run.run import Missing, Run, Stage, find_missing, input_path, need
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.reference import IMAGE_WEIGHTS, place_free_name
from paraclip_core.errors import ArtifactError, InputError
from paraclip_core.lifetime import TempDir

EARLIER = 4
"""Finished artifacts whose features can be reused; a fifth one hardly has the same images."""

READ_IMAGES = 10_000
"""Images whose contents are read to estimate how many are new."""

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
    local = [artifact for artifact in run.store.list("features") if artifact.path.is_dir()]
    if not local:
        return None
    draft = run.node("features").draft
    alike = [artifact for artifact in local if _image_encoder(artifact.manifest) == _image_encoder(draft)]
    if not alike:
        return None
    with TempDir("images-") as scratch:
        list_images(captions, scratch / "images.parquet")
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
    new = sum(earlier(digest) is None for digest in _digests(run, images.take(pa.array(chosen))))
    return round(new * len(left) / max(len(chosen), 1))


def _image_encoder(draft: Draft) -> tuple[Any, dict[str, str]]:
    """The options and sources that decide the image encoder."""
    images = f"{SOURCE}images/", "ingest"
    return draft.options.get("image_encoder"), {k: v for k, v in draft.inputs.items() if not k.startswith(images)}


def _unchanged(archive: str, now: Mapping[str, str], then: Mapping[str, str]) -> bool:
    name = f"{SOURCE}images/{archive}"
    return name in now and now[name] == then.get(name)


def _digests(run: Run, images: pa.Table) -> Iterator[bytes]:
    """Hashes of the image files that can be read."""
    for name in images["images"].unique().to_pylist():
        with ImageArchive(input_path(run.settings, name)) as archive:
            for path in images.filter(pc.field("images") == name)["image_path"].to_pylist():
                with suppress(InputError):
                    yield hashlib.blake2b(archive.read(path), digest_size=16).digest()


def list_images(captions: Path, target: Path) -> int:
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
            raise ArtifactError(f"cannot list the images of {captions}: {error}") from error
        temporary.replace(target)
    return pq.read_metadata(target).num_rows


def _options(run: Run) -> Mapping[str, Any]:
    """The options that decide the features: the image encoder, but not the text encoder or a local model's location."""
    model = run.settings.model
    if model.base == BUILT_IN:
        return {"image_encoder": {"weights": IMAGE_WEIGHTS, "embed_dim": model.embed_dim}}
    return {"image_encoder": {"base": place_free_name(model.base)}}


def _archives(run: Run) -> list[tuple[str, str]]:
    """The sources' tars and folders of images, each with the option that names it."""
    sources = enumerate(run.settings.data.sources)
    named = ((f"data.sources[{number}].images", source.images) for number, source in sources)
    return [(option, images) for option, images in named if images is not None]


def _sources(run: Run) -> Mapping[str, str]:
    """Content hashes of the image archives and of a base in a local folder."""
    contents = dict(base_sources(run))
    need(_missing(run), run.settings)
    archives = dict.fromkeys(images for _, images in _archives(run))
    return contents | {f"images/{name}": run.hashes.of_place(input_path(run.settings, name)) for name in archives}


def _missing(run: Run) -> list[Missing]:
    expected = "a tar or folder with the captions' images"
    absent = (find_missing(run.settings, option, images, expected) for option, images in _archives(run))
    return list(chain.from_iterable(absent))


FEATURES = Stage(
    name="features",
    version=1,
    inputs=lambda settings: ("ingest",),
    options=_options,
    body="paraclip.tasks.features.encode:encode",
    sources=_sources,
    missing=_missing,
    applies=lambda settings: not corpus_of(settings).links,
    about="Run every image through the frozen image encoder once.",
    pool="gpu",
    units=("encoded", "images"),
)
