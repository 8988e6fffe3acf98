"""Where the images of a benchmark lie: named by the user, beside its file, or among those that a run has ingested.

Images are in a folder, a tar, a Parquet file with pictures, or a folder with several of these. Benchmarks call them by
name: the whole name inside, the bare file name, or a picture's stem. In Parquet the name is in the pictures' own field
`path` or in a column such as `file_name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.benchmarks import Source
from paraclip_core.evaluation.pool import Box, ImagePool, archive_pool
from paraclip_core.evaluation.rows import benchmark_errors
from paraclip_core.pictures import PICTURES, damaged_parquet, is_picture, picture_column, picture_name

NAMES = ("file_name", "filename", "image_path", "image_id", "key", "url")
"""Columns that name a Parquet file's pictures."""


def images_beside(path: Path) -> Path | None:
    """The tar or folder with the images of a captions file or benchmark folder, None where there is none."""
    folder, stem = (path, path.name) if path.is_dir() else (path.parent, path.stem)
    for name in (f"{stem}.tar", "images.tar", "images", stem, "val2017"):
        if (folder / name).exists() and folder / name != path:
            return folder / name
    tars = sorted(folder.glob("*.tar"))
    if len(tars) == 1:
        return tars[0]
    return folder if any(p.suffix.lower() in PICTURES for p in folder.iterdir()) else None


def beside(path: Path) -> list[Path]:
    """All files that a benchmark at `path` reads: the file and its images, or everything in the folder."""
    files = [path] if path.is_file() else []
    for place in filter(None, (path if path.is_dir() else None, images_beside(path))):
        inside = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
        # Where images lie loosely beside the file, so may all else, the artifacts that are being written included.
        files += [p for p in inside if p.suffix.lower() in PICTURES] if place == path.parent else inside
    return sorted(set(files))


def archives(images: Path) -> list[Path]:
    """The folder, tar or Parquet file itself; of a folder that holds tars or Parquet files and no pictures: these."""
    if not images.is_dir() or any(p.suffix.lower() in PICTURES for p in images.rglob("*")):
        return [images]
    inside = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".tar", ".parquet") and p.is_file())
    return inside or [images]


def pool_of(
    path: Path,
    image_ids: Sequence[str],
    images: Path | None = None,
    parts: Mapping[str, tuple[str, Box]] | None = None,
) -> ImagePool:
    """The distinct images of a captions file as a pool, encoded from `images` or what lies beside the file; of `parts`
    each id is a part of an image."""
    images = images or images_beside(path)
    if images is None:
        raise BenchmarkError(
            f"no images beside {path}; expected images.tar, {path.stem}.tar or a folder `images`, or the benchmark's "
            "option `images` (--images)"
        )
    files = {image_id: parts[image_id][0] if parts else image_id for image_id in image_ids}
    names = list(dict.fromkeys(files.values()))
    places = find_images(images, names)
    if missing := [name for name in names if name not in places]:
        raise BenchmarkError(
            f"{images} lacks {len(missing)} of {len(names)} images of {path.name}, first {missing[0]!r}"
        )
    ids = in_reading_order({image_id: places[file] for image_id, file in files.items()})
    boxes = [parts[image_id][1] for image_id in ids] if parts else None
    return archive_pool(ids, [places[files[image_id]] for image_id in ids], boxes)


def every_image(images: Path, named: Mapping[str, tuple[Path, str]]) -> ImagePool:
    """All images there; those that :func:`find_images` has `named` go by their names, the others by where they lie."""
    ids = {place: image_id for image_id, place in named.items()}
    places: dict[str, tuple[Path, str]] = {}
    for archive in archives(images):
        with ImageArchive(archive) as opened:
            inside = [name for name in opened.names() if opened.in_order or name.lower().endswith(PICTURES)]
        for name in inside:
            places[ids.get((archive, name), f"{archive.name}/{name}")] = (archive, name)
    return archive_pool(list(places), list(places.values()))


def in_reading_order(places: Mapping[str, tuple[Path, str]]) -> list[str]:
    """The images in the order in which their archives are best read: as they are, but in Parquet by row."""
    if any(archive.suffix.lower() == ".parquet" for archive, _ in places.values()):
        return sorted(places, key=lambda image_id: (places[image_id], image_id))
    return list(places)


def pool_for(source: Source, image_ids: Sequence[str]) -> ImagePool | None:
    """All of these images: those that the user names, those beside the file, or those that a run has ingested.

    Returns:
        None where they are not all there.
    """
    path = source.need_path()
    if source.images is not None:
        return pool_of(path, image_ids, source.images)
    ids = list(dict.fromkeys(image_ids))
    if (images := images_beside(path)) is not None:
        places = find_images(images, ids)
        if len(places) == len(ids):
            ids = in_reading_order(places)
            return archive_pool(ids, [places[image_id] for image_id in ids])
    if source.stored is None:
        return None
    try:
        pool = source.stored.pool(ids)
    except BenchmarkError:
        return None
    return pool if len(pool.ids) == len(ids) else None


def find_images(images: Path, ids: Sequence[str]) -> dict[str, tuple[Path, str]]:
    """Archive and name inside of each image that is there."""
    places: dict[str, tuple[Path, str]] = {}
    for archive in archives(images):
        places = {image_id: (archive, name) for image_id, name in image_names(archive, ids).items()} | places
    return {image_id: places[image_id] for image_id in ids if image_id in places}


def image_names(images: Path, ids: Sequence[str]) -> dict[str, str]:
    """Name inside the tar, folder or Parquet file of each image that is there.

    An id is the whole name, the file name, or a picture's stem. Of several with one file name or stem the one that lies
    least deep is meant.
    """
    with benchmark_errors():
        inside = _parquet_names(images) if images.suffix.lower() == ".parquet" else None
        if inside is None:
            with ImageArchive(images) as archive:
                inside = {name: name for name in archive.names()}
    names = list(inside)
    # Webdataset's tars have a text beside each picture, of the same stem.
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
    by_file, by_stem = _grouped(names, lambda path: path.name), _grouped(pictures, lambda path: path.stem)
    meant = {
        image_id: [image_id] if image_id in inside else by_file.get(image_id) or by_stem.get(image_id)
        for image_id in ids
    }
    return {image_id: inside[_least_deep(images, image_id, some)] for image_id, some in meant.items() if some}


def _parquet_names(file: Path) -> dict[str, str] | None:
    """What the pictures of a Parquet file are called, with their names inside; None without a column of names."""
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            column = picture_column(schema, where=str(file))
            if column is None or not is_picture(schema.field(column).type):
                raise InputError(f"{file} has no column of pictures")
            keys = [name for name in NAMES if name in schema.names]
            kind = schema.field(column).type
            own = [f"{column}.path"] if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else []
            table = parquet.read(columns=[*own, *keys])
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(file, error) from error
    columns = [table[column].combine_chunks().field("path")] if own else []
    for values in [*columns, *(table[key] for key in keys)]:
        if values.null_count < len(values):
            named = enumerate(values.to_pylist())
            return {str(value): picture_name(column, row) for row, value in named if value is not None}
    return None


def _grouped(names: Sequence[str], key: Callable[[PurePosixPath], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(PurePosixPath(name)), []).append(name)
    return groups


def _least_deep(images: Path, image_id: str, names: Sequence[str]) -> str:
    least = min(name.count("/") for name in names)
    meant = [name for name in names if name.count("/") == least]
    if len(meant) > 1:
        raise BenchmarkError(
            f"{images}: image {image_id!r} may be {meant[0]} or {meant[1]}; write the folder to its name, or leave one "
            "of them out"
        )
    return meant[0]
