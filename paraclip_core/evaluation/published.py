"""Captioned images in their published formats: JSON with a tar or folder of images beside it, or Parquet with both.

A column `split` or a name such as ``test-00000-of-00002.parquet`` says the split of Parquet; shards of another split
are not read. An image in it is its contents, so rows that repeat a picture are one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.clean import split_name
from paraclip_core.captions.readers.columns import SPLIT
from paraclip_core.captions.rows import decodable
from paraclip_core.captions.sources import detect, read, shard_split
from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions
from paraclip_core.evaluation.benchmarks import Source
from paraclip_core.evaluation.image_files import beside, pool_of
from paraclip_core.evaluation.pool import ImagePool, archive_pool
from paraclip_core.evaluation.rows import benchmark_errors
from paraclip_core.pictures import damaged_parquet, picture_column

EVALUATION_SPLITS = ("test", "val")
REWORDINGS = ("rewording", "caption2", "paraphrase")
NO_CAPTIONS = "dataset_infos.json"
"""What the hub puts beside the shards."""

Row = tuple[str, str, str | None]
"""Image, caption and split; None belongs to every split."""


def captioned_images(source: Source) -> tuple[Captions, ImagePool]:
    """Captions at the source's path with their images, or those of the stored split."""
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
            "name the images in data.sources[].images, or see in ingest's log and rejects why"
        )
    return stored.captions, stored.pool(stored.captions.image_ids)


def captioned_files(path: Path, split: str | None, pairs: bool = False) -> list[Path]:
    """Every file that :func:`captioned_images` reads; `pairs` as in :func:`picture_files`."""
    return picture_files(path, split, pairs) or beside(path)


def captions_file(path: Path) -> Path:
    """The captions file itself, or the one in a folder."""
    if not path.is_dir():
        return path
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl") and not p.name.startswith("."))
    files = [p for p in files if p.name.startswith(("dataset_", "captions"))] or files
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "none"
        raise BenchmarkError(
            f"{path}: expected one captions file (.json or .jsonl) or Parquet with pictures, found {names}; name the "
            "file itself"
        )
    return files[0]


def load_captions(path: Path, split: str | None = None) -> Captions:
    """Read a split of a Karpathy JSON, a COCO annotation JSON, or JSONL rows with `image` and `caption` or `captions`.

    Without `split` it is the file's test split, or val where it has no test split.
    """
    with benchmark_errors():
        form = detect(path)
    if form not in ("coco", "karpathy", "jsonl"):
        raise BenchmarkError(
            f"{path}: expected captions as a Karpathy or COCO annotation .json, as .jsonl with image and caption, or "
            "as Parquet with a column of pictures, binary or with a field `bytes`, beside the captions"
        )
    return _of_split(path, [(image, text, of) for image, _, text, of in _rows(path, form)], split)


def _rows(file: Path, form: str, pictures: str | None = None) -> Iterator[tuple[str, str | None, str, str | None]]:
    """Image, its name inside of the file, caption and split; None belongs to every split."""
    default = shard_split(file) if form == "parquet" else "test" if form == "karpathy" else None
    options = SourceOptions(path=file.name, columns=ColumnNames(image=pictures))
    with benchmark_errors():
        for batch in read(file, options, form):
            # COCO's own ids are numbers, and Karpathy's paths have folders that archives have not.
            images = batch.image_paths if form in ("coco", "jsonl") else batch.image_ids
            rows = list(zip(batch.rows, images, batch.captions, strict=True))
            captioned = {row for row, _, text in rows if form == "parquet" and text.strip()}
            # A row left out would make the pool smaller, and retrieval in it easier, unsaid.
            problems = [(reject.row, reject.detail) for reject in batch.rejects if reject.row not in captioned]
            for row, image, text in rows:
                if not (text.strip() or row in captioned or form == "karpathy"):
                    problems.append((row, "a blank caption, expected text"))
                if image is None:
                    problems.append((row, "no image, expected its file name"))
                if not decodable([image, text]):
                    problems.append((row, f"caption {text[:60]!r} of image {image!r} is not valid UTF-8"))
            for row, problem in problems[:1]:
                where = f"line {row}" if file.suffix == ".jsonl" else f"row {row} (from 0)"
                raise BenchmarkError(f"{file}, {where}: {problem}")
            for image, name, text, stated in zip(images, batch.image_paths, batch.captions, batch.splits, strict=True):
                if image is not None and text.strip():
                    of = (form == "parquet" and split_name(stated or "")) or stated or default
                    yield image, name, text.strip(), of


def _of_split(path: Path, rows: Sequence[Row], split: str | None) -> Captions:
    splits = {of for _, _, of in rows if of is not None}
    chosen = split or next((name for name in EVALUATION_SPLITS if name in splits), "test")
    pairs = [(image, caption) for image, caption, of in rows if of is None or of == chosen]
    if not pairs:
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits: {sorted(splits)}")
    return Captions([image for image, _ in pairs], [caption for _, caption in pairs], chosen if splits else "all")


def picture_files(path: Path, split: str | None = None, pairs: bool = False) -> list[Path]:
    """The Parquet files with pictures that a benchmark reads, sorted; none where its captions are in another format.

    A folder is searched with its subfolders, unless it holds captions as JSON. `split` as in :func:`load_captions`;
    `pairs` leaves files with pairs of captions to whoever reads pairs.
    """
    columns: dict[Path, list[str]] = {}
    for file in _candidates(path, pairs):
        names, pictures = _columns(file)
        if pictures is not None:
            columns[file] = names
    if pairs and any(name in names for names in columns.values() for name in REWORDINGS):
        return []
    splits = {file: None if SPLIT[0] in names else shard_split(file) for file, names in columns.items()}
    chosen = _wanted(split) or next((name for name in EVALUATION_SPLITS if name in splits.values()), "test")
    files = [file for file, of in splits.items() if of in (None, chosen)]
    if splits and not files:
        names = sorted({of for of in splits.values() if of is not None})
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits by the files' names: {names}")
    return files


def load_pictures(path: Path, files: Sequence[Path], split: str | None = None) -> tuple[Captions, ImagePool]:
    """Read captions and tell their pictures apart; nulls and blanks beside other captions of a row are left out."""
    rows: list[Row] = []
    places: dict[str, tuple[Path, str]] = {}
    for file in files:
        for image, name, text, of in _rows(file, "parquet", _columns(file)[1]):
            places.setdefault(image, (file, str(name)))
            rows.append((image, text, of))
    captions = _of_split(path, rows, _wanted(split))
    ids = list(dict.fromkeys(captions.image_ids))
    return captions, archive_pool(ids, [places[image] for image in ids])


def _wanted(split: str | None) -> str | None:
    return split and (split_name(split) or split)


def _candidates(path: Path, pairs: bool) -> list[Path]:
    if not path.is_dir():
        return [path] if path.suffix.lower() == ".parquet" else []
    inside = [file for file in path.iterdir() if not file.name.startswith(".")]
    if any(file.suffix in (".json", ".jsonl") and file.name != NO_CAPTIONS for file in inside):
        return []
    if pairs and any(file.stem in ("rewordings", "pairs") for file in inside):
        return []
    files = [file for file in path.rglob("*.parquet") if file.is_file()]
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _columns(file: Path) -> tuple[list[str], str | None]:
    """Names of a Parquet file's columns, and of the one with pictures."""
    with benchmark_errors():
        try:
            schema = pq.read_schema(file, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise damaged_parquet(file, error) from error
        return schema.names, picture_column(schema, where=str(file))
