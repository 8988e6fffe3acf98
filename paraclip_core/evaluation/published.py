"""Reads benchmark files in their published formats, with the caption readers: rows, images and captioned images.

Rows are JSONL, JSON, CSV, TSV or Parquet. Images are in a location given by the user, next to the file, or among those
ingested by a run: in a folder, a tar or a folder of tars. Benchmarks refer to them by the full name inside, the bare
file name, or the stem. Captioned images are JSON with a tar or folder of images next to it, or Parquet with both. The
split of Parquet comes from a column `split` or a name such as ``test-00000-of-00002.parquet``; shards of other splits
are not read. An image in Parquet is identified by its contents, so rows that repeat a picture are one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.columns import SPLIT, ColumnNames
from paraclip_core.captions.formats import detect, read
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.csv import csv_records
from paraclip_core.captions.readers.json import json_records, load_json
from paraclip_core.captions.readers.lines import numbered_lines
from paraclip_core.captions.readers.parquet import parquet_records
from paraclip_core.captions.rows import decodable
from paraclip_core.captions.splits import shard_split, split_name
from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Box, Captions, ImagePool, archive_pool
from paraclip_core.evaluation.benchmarks import Source
from paraclip_core.pictures import PICTURES, damaged_parquet, picture_column

EVALUATION_SPLITS = ("test", "val")
COCO_FOLDERS = ("val2017", "val2014")
NO_CAPTIONS = "dataset_infos.json"
"""File that the hub puts next to the shards."""

Row = tuple[str, str, str | None]
"""Image, caption and split; None means every split."""
Place = tuple[Path, str]
"""An image's archive and its name there."""


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines without line breaks, numbered from 1."""
    for number, line in numbered_lines(path):
        if line is None or not decodable([line]):
            raise BenchmarkError(f"{path}, line {number}: more than 16 MiB, or not UTF-8; save the file as UTF-8")
        yield number, line


def plain_tsv(path: Path, expected: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a tab-separated file whose header has the `expected` columns; quotation marks are ordinary characters."""
    rows = ((number, line.split("\t")) for number, line in lines(path) if line or number == 1)
    header = [name.strip() for name in next(rows, (1, ()))[1]]
    if header and not set(expected) <= set(header):
        raise BenchmarkError(f"{path}, line 1: the header is {header}; expected tab-separated {', '.join(expected)}")
    yield from _named(path, header, rows)


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL, JSON, CSV, TSV or Parquet file, with the line or row number, from 1.

    A JSON file holds a list of objects, or an object of objects (as in SugarCrepe). Pictures in Parquet are left out.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        table = csv_records(path, lambda names: True, "\t" if suffix == ".tsv" else ",")
        rows = ((number, fields) for number, fields in table if fields)
        yield from _named(path, next(rows, (1, []))[1] or [], rows)
        return
    if suffix == ".jsonl":
        objects: Iterable[tuple[int, Any]] = json_records(path)
    elif suffix == ".json":
        value = load_json(path)
        objects = enumerate(
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value], 1
        )
    elif suffix == ".parquet":
        objects = enumerate(parquet_records(path), 1)
    else:
        raise BenchmarkError(f"{path}: expected a .jsonl, .json, .csv, .tsv or .parquet file")
    for number, row in objects:
        if not isinstance(row, dict):
            raise BenchmarkError(f"{path}, row {number}: {str(row)[:80]!r}, expected a JSON object")
        yield number, row


def _named(path: Path, header: Sequence[str], rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    for number, fields in rows:
        if len(fields) != len(header):
            raise BenchmarkError(f"{path}, line {number}: {len(fields)} fields, expected {len(header)} as in line 1")
        yield number, dict(zip(header, fields, strict=True))


def field(path: Path, number: int, row: dict[str, Any], *names: str) -> str:
    """The first of the named fields that the row has, as stripped text."""
    name = next((name for name in names if row.get(name) is not None), None)
    value = None if name is None else row[name]
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip() or not decodable([text]):
        raise BenchmarkError(
            f"{path}, row {number}: {' or '.join(names)} is {value!r}, expected text; its fields are {', '.join(row)}"
        )
    return text.strip()


def images_beside(path: Path) -> Path | None:
    """The tar or folder with the images of a captions file or benchmark folder: in that folder, or COCO's beside it;
    None if there is none."""
    folder, stem = (path, path.name) if path.is_dir() else (path.parent, path.stem)
    # captions_val2014.json is about val2014.
    coco = sorted(COCO_FOLDERS, key=lambda name: name not in stem)
    for name in (f"{stem}.tar", "images.tar", "images", stem, *coco):
        if (folder / name).exists() and folder / name != path:
            return folder / name
    tars = sorted(folder.glob("*.tar"))
    if len(tars) == 1:
        return tars[0]
    if any(p.suffix.lower() in PICTURES for p in folder.iterdir()):
        return folder
    # COCO's captions are in `annotations`, SugarCrepe's in `data`; a relative path may be a bare name.
    return next((place for name in coco if (place := folder.absolute().parent / name).exists()), None)


def files_in(path: Path) -> list[Path]:
    """All files that a benchmark at `path` reads: the file and its images, or everything in the folder."""
    files = [path] if path.is_file() else []
    for place in filter(None, (path if path.is_dir() else None, images_beside(path))):
        inside = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
        # If images are loose files next to it, so may be anything else, including artifacts being written.
        files += [p for p in inside if p.suffix.lower() in PICTURES] if place == path.parent else inside
    return sorted(set(files))


def archives(images: Path) -> list[Path]:
    """The folder or tar itself, or the tars of a folder that holds tars and no pictures."""
    if not images.is_dir() or any(p.suffix.lower() in PICTURES for p in images.rglob("*")):
        return [images]
    return sorted(p for p in images.rglob("*.tar") if p.is_file()) or [images]


def find_images(images: Path, ids: Sequence[str]) -> dict[str, Place]:
    """Locations of the images that exist."""
    places: dict[str, Place] = {}
    for archive in archives(images):
        places = {image_id: (archive, name) for image_id, name in image_names(archive, ids).items()} | places
    return {image_id: places[image_id] for image_id in ids if image_id in places}


def image_names(images: Path, ids: Sequence[str]) -> dict[str, str]:
    """Names inside the tar or folder of the images that exist.

    An id is the full name, the file name, or a picture's stem. If several share a file name or stem, the least deeply
    nested one is meant.
    """
    with ImageArchive(images) as archive:
        names = sorted(archive.names(), key=lambda name: (name.count("/"), name))[::-1]
    paths = [PurePosixPath(name) for name in names]
    # Webdataset tars have a text with the same stem next to each picture. Later entries win: the least nested ones.
    stems = {path.stem: name for path, name in zip(paths, names, strict=True) if path.suffix.lower() in PICTURES}
    name_of = (
        stems | {path.name: name for path, name in zip(paths, names, strict=True)} | {name: name for name in names}
    )
    return {image_id: name_of[image_id] for image_id in ids if image_id in name_of}


def pool_of(
    path: Path,
    image_ids: Sequence[str],
    images: Path | None = None,
    parts: Mapping[str, tuple[str, Box]] | None = None,
) -> ImagePool:
    """The distinct images of a captions file as a pool, encoded from `images` or those next to the file; with `parts`
    each id is a part of an image."""
    images = images or images_beside(path)
    if images is None:
        raise BenchmarkError(
            f"no images next to {path}; expected images.tar, {path.stem}.tar or a folder `images`, or the benchmark's "
            "option `images` (--images)"
        )
    files = {image_id: parts[image_id][0] if parts else image_id for image_id in image_ids}
    names = list(dict.fromkeys(files.values()))
    places = find_images(images, names)
    if missing := [name for name in names if name not in places]:
        raise BenchmarkError(
            f"{images} lacks {len(missing)} of {len(names)} images of {path.name}, first {missing[0]!r}"
        )
    boxes = [parts[image_id][1] for image_id in files] if parts else None
    return archive_pool(list(files), [places[file] for file in files.values()], boxes)


def every_image(images: Path, named: Mapping[str, Place]) -> ImagePool:
    """All images in `images`; those found by :func:`find_images` (`named`) keep these names, others use their paths."""
    ids = {place: image_id for image_id, place in named.items()}
    places: dict[str, Place] = {}
    for archive in archives(images):
        with ImageArchive(archive) as opened:
            inside = [name for name in opened.names() if name.lower().endswith(PICTURES)]
        for name in inside:
            places[ids.get((archive, name), f"{archive.name}/{name}")] = (archive, name)
    return archive_pool(list(places), list(places.values()))


def pool_for(source: Source, image_ids: Sequence[str]) -> ImagePool | None:
    """A pool of all these images, from the user's location, next to the file, or ingested by a run; None if some are
    missing."""
    path = source.need_path()
    if source.images is not None:
        return pool_of(path, image_ids, source.images)
    ids = list(dict.fromkeys(image_ids))
    if (images := images_beside(path)) is not None:
        places = find_images(images, ids)
        if len(places) == len(ids):
            return archive_pool(ids, [places[image_id] for image_id in ids])
    if source.stored is None:
        return None
    try:
        pool = source.stored.pool(ids)
    except BenchmarkError:
        return None
    return pool if len(pool.ids) == len(ids) else None


def captioned_images(source: Source) -> tuple[Captions, ImagePool]:
    """Captions and images at the source's path, or of the stored split."""
    path, stored, split = source.path, source.stored, source.split
    if path is not None:
        if files := picture_files(path, split):
            return load_pictures(path, files, split)
        file = captions_file(path)
        captions = load_captions(file, split)
        return captions, pool_of(file, captions.image_ids, source.images)
    if stored is None:
        raise BenchmarkError("it needs a path: there is no ingested split outside a run")
    if not stored.captions.captions:
        raise BenchmarkError(
            f"no ingested caption of split {stored.captions.split!r} has an image; set evaluate.split, "
            "name the images in data.sources[].images, or look in ingest's log and rejects for the reason"
        )
    return stored.captions, stored.pool(stored.captions.image_ids)


def captioned_files(path: Path, split: str | None) -> list[Path]:
    """Every file that :func:`captioned_images` reads."""
    return picture_files(path, split) or files_in(path)


def captions_file(path: Path) -> Path:
    """The captions file itself, or the one in a folder."""
    if not path.is_dir():
        return path
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl") and not p.name.startswith("."))
    files = [p for p in files if p.name.startswith(("dataset_", "captions"))] or files
    if len(files) != 1:
        raise BenchmarkError(
            f"{path}: expected one captions file (.json or .jsonl) or Parquet with pictures, found "
            f"{', '.join(p.name for p in files) or 'none'}; name the file itself"
        )
    return files[0]


def load_captions(path: Path, split: str | None = None) -> Captions:
    """Read a split of a Karpathy JSON, a COCO annotation JSON, or JSONL rows with `image` and `caption` or `captions`.

    Without `split`, the file's test split is read, or val if there is none.
    """
    form = detect(path)
    if form not in ("coco", "karpathy", "jsonl"):
        raise BenchmarkError(
            f"{path}: expected captions as a Karpathy or COCO annotation .json, as .jsonl with image and caption, or "
            "as Parquet with a column of pictures, binary or with a field `bytes`, next to the captions"
        )
    return _captions(path, [(image, text, of) for image, _, text, of in _rows(path, form)], split)


def _rows(file: Path, form: str, pictures: str | None = None) -> Iterator[tuple[str, str | None, str, str | None]]:
    """Image, its name inside the file, caption and split; None means every split."""
    default = shard_split(file) if form == "parquet" else "test" if form == "karpathy" else None
    options = SourceOptions(path=file.name, columns=ColumnNames(image=pictures))
    for batch in read(file, options, form):
        batch.drop_undecodable()
        # COCO's own ids are numbers, and Karpathy's paths have folders that archives lack.
        images = batch.image_paths if form in ("coco", "jsonl") else batch.image_ids
        rows = list(zip(batch.rows, images, batch.image_paths, batch.captions, batch.splits, strict=True))
        captioned = {row for row, _, _, text, _ in rows if text.strip() and form == "parquet"}
        # Skipping a row would silently make the pool smaller and retrieval easier.
        problems = [(reject.row, reject.detail) for reject in batch.rejects if reject.row not in captioned]
        for row, image, _, text, _ in rows:
            if image is None or not (text.strip() or row in captioned or form == "karpathy"):
                problems.append((row, "no image, expected its file name" if image is None else "a blank caption"))
        if problems:
            row, problem = problems[0]
            where = f"line {row}" if file.suffix == ".jsonl" else f"row {row} (from 0)"
            raise BenchmarkError(f"{file}, {where}: {problem}")
        for _, image, name, text, stated in rows:
            if image is not None and text.strip():
                yield image, name, text.strip(), (form == "parquet" and split_name(stated or "")) or stated or default


def _captions(path: Path, rows: Sequence[Row], split: str | None) -> Captions:
    """Captions of a split, as in :func:`load_captions`; it is named `all` if no row states one."""
    splits = {of for _, _, of in rows if of is not None}
    chosen = split or next((name for name in EVALUATION_SPLITS if name in splits), "test")
    pairs = [(image, text) for image, text, of in rows if of in (None, chosen)]
    if not pairs:
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits: {sorted(splits)}")
    return Captions([image for image, _ in pairs], [text for _, text in pairs], chosen if splits else "all")


def picture_files(path: Path, split: str | None = None) -> list[Path]:
    """The Parquet files with pictures that a benchmark reads, sorted; empty if its captions are in another format.

    A folder is searched recursively, unless it holds captions as JSON. `split` as in :func:`load_captions`.
    """
    columns = {file: _columns(file) for file in _parquet_files(path)}
    splits = {
        file: None if SPLIT[0] in names else shard_split(file)
        for file, (names, pictures) in columns.items()
        if pictures is not None
    }
    chosen = _wanted(split) or next((name for name in EVALUATION_SPLITS if name in splits.values()), "test")
    files = [file for file, of in splits.items() if of in (None, chosen)]
    if splits and not files:
        names = sorted({of for of in splits.values() if of is not None})
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits by the files' names: {names}")
    return files


def load_pictures(path: Path, files: Sequence[Path], split: str | None = None) -> tuple[Captions, ImagePool]:
    """Read captions and identify their pictures; null and blank captions of a row with others are skipped."""
    rows: list[Row] = []
    places: dict[str, Place] = {}
    for file in files:
        for image, name, text, of in _rows(file, "parquet", _columns(file)[1]):
            places.setdefault(image, (file, str(name)))
            rows.append((image, text, of))
    captions = _captions(path, rows, _wanted(split))
    ids = list(dict.fromkeys(captions.image_ids))
    return captions, archive_pool(ids, [places[image] for image in ids])


def _wanted(split: str | None) -> str | None:
    return split and (split_name(split) or split)


def _parquet_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.suffix.lower() == ".parquet" else []
    inside = [file for file in path.iterdir() if not file.name.startswith(".")]
    if any(file.suffix in (".json", ".jsonl") and file.name != NO_CAPTIONS for file in inside):
        return []
    files = [file for file in path.rglob("*.parquet") if file.is_file()]
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _columns(file: Path) -> tuple[list[str], str | None]:
    """Column names of a Parquet file, and the name of the column with pictures."""
    try:
        schema = pq.read_schema(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(file, error) from error
    return schema.names, picture_column(schema, where=str(file))
