"""Captioned images in their published formats: JSON with a tar or folder of images beside it, or Parquet with both.

A column `split` or a name such as ``test-00000-of-00002.parquet`` says the split of Parquet; shards of another split
are not read. An image in it is its contents, so rows that repeat a picture are one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.clean import split_name
from paraclip_core.captions.readers.columns import CAPTION, SPLIT, choose_columns
from paraclip_core.captions.readers.parquet import read_parquet
from paraclip_core.captions.rows import RowBatch, decodable
from paraclip_core.captions.sources import shard_split
from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.benchmarks import Source
from paraclip_core.evaluation.image_files import beside, pool_of
from paraclip_core.evaluation.pool import ImagePool, archive_pool
from paraclip_core.evaluation.rows import field, read_json_file, records
from paraclip_core.pictures import damaged_parquet, listed_types, picture_column

EVALUATION_SPLITS = ("test", "val")
TABLES = (".csv", ".tsv", ".parquet", ".txt")
REWORDINGS = ("rewording", "caption2", "paraphrase")
NO_CAPTIONS = "dataset_infos.json"
"""What the hub puts beside the shards."""

Row = tuple[str, str, str | None]
"""Image, caption and split; None belongs to every split."""


@dataclass(frozen=True)
class Captions:
    """Captions of images: `image_ids[i]` is the image of `captions[i]`."""

    image_ids: Sequence[str]
    captions: Sequence[str]
    split: str
    """Split that they are, or a word on where they come from."""


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
    """Read a Karpathy JSON, a COCO annotation JSON, or JSONL rows with `image` and `caption` or `captions`.

    Args:
        path: the file.
        split: the split to take; None takes the file's test split, or val where it has no test split.
    """
    if path.suffix == ".jsonl":
        return _of_split(path, [*_jsonl_rows(path)], split)
    if path.suffix.lower() in TABLES:
        raise BenchmarkError(
            f"{path}: expected captions as a Karpathy or COCO annotation .json, as .jsonl with image and caption, or "
            "as Parquet with a column of pictures, binary or with a field `bytes`, beside the captions"
        )
    value = read_json_file(path)
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise BenchmarkError(f"{path}: no list `images`; expected a Karpathy or COCO annotation JSON")
    if isinstance(value.get("annotations"), list):
        return _of_split(path, [*_coco_rows(path, value["images"], value["annotations"])], split)
    return _of_split(path, [*_karpathy_rows(path, value["images"])], split)


def _of_split(path: Path, rows: Sequence[Row], split: str | None) -> Captions:
    splits = {of for _, _, of in rows if of is not None}
    chosen = split or next((name for name in EVALUATION_SPLITS if name in splits), "test")
    pairs = [(image, caption) for image, caption, of in rows if of is None or of == chosen]
    if not pairs:
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits: {sorted(splits)}")
    return Captions([image for image, _ in pairs], [caption for _, caption in pairs], chosen if splits else "all")


def _karpathy_rows(path: Path, images: list[Any]) -> Iterator[Row]:
    for number, image in enumerate(images, 1):
        entry = _object(path, "images", number, image)
        name, sentences = field(path, number, entry, "filename"), entry.get("sentences")
        if not isinstance(sentences, list):
            raise BenchmarkError(f"{path}, images entry {number}: no list `sentences`; expected a Karpathy JSON")
        for sentence in sentences:
            text = _object(path, "images", number, sentence).get("raw")
            if isinstance(text, str) and text.strip():
                yield name, field(path, number, {"raw": text}, "raw"), str(entry.get("split", "test"))


def _coco_rows(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[Row]:
    names: dict[float | str, str] = {}
    for number, image in enumerate(images, 1):
        entry = _object(path, "images", number, image)
        names[_coco_id(path, "images", number, entry, "id")] = field(path, number, entry, "file_name")
    for number, annotation in enumerate(annotations, 1):
        entry = _object(path, "annotations", number, annotation)
        image_id = _coco_id(path, "annotations", number, entry, "image_id")
        if image_id not in names:
            raise BenchmarkError(f"{path}, annotations entry {number}: image_id {image_id!r} is unknown")
        yield names[image_id], field(path, number, entry, "caption"), None


def _coco_id(path: Path, where: str, number: int, entry: dict[str, Any], name: str) -> float | str:
    value = entry.get(name)
    if not isinstance(value, int | float | str):
        raise BenchmarkError(f"{path}, {where} entry {number}: {name} is {value!r}, expected a number or a text")
    return value


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, row in records(path):
        image = field(path, number, row, "image", "filename", "file_name", "image_id")
        split = row.get("split")
        texts = row.get("captions", row.get("caption"))
        for text in texts if isinstance(texts, list) else [texts]:
            yield image, field(path, number, {"caption": text}, "caption"), None if split is None else str(split)


def _object(path: Path, where: str, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BenchmarkError(f"{path}, {where} entry {number}: a {type(value).__name__}, expected an object")
    return value


def picture_files(path: Path, split: str | None = None, pairs: bool = False) -> list[Path]:
    """The Parquet files with pictures that a benchmark reads, sorted; none where its captions are in another format.

    Args:
        path: a file, or a folder that is searched with its subfolders, unless it holds captions as JSON.
        split: the split to take; None takes the test split, or val where there is no test split.
        pairs: leave files with pairs of captions to whoever reads pairs.
    """
    schemas = {file: _schema(file) for file in _candidates(path, pairs)}
    schemas = {file: schema for file, schema in schemas.items() if _pictures(file, schema) is not None}
    if pairs and any(name in schema.names for schema in schemas.values() for name in REWORDINGS):
        return []
    splits = {file: None if SPLIT[0] in schema.names else shard_split(file) for file, schema in schemas.items()}
    chosen = _wanted(split) or next((name for name in EVALUATION_SPLITS if name in splits.values()), "test")
    files = [file for file, of in splits.items() if of in (None, chosen)]
    if splits and not files:
        names = sorted({of for of in splits.values() if of is not None})
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits by the files' names: {names}")
    return files


def load_pictures(path: Path, files: Sequence[Path], split: str | None = None) -> tuple[Captions, ImagePool]:
    """Read captions and tell their pictures apart; nulls and blanks beside other captions of a row are left out.

    Args:
        path: what the benchmark names, for messages.
        files: see :func:`picture_files`.
        split: as there.
    """
    rows: list[Row] = []
    places: dict[str, tuple[Path, str]] = {}
    for file in files:
        for batch in _batches(file):
            for image, name, text, stated in zip(
                batch.image_ids, batch.image_paths, batch.captions, batch.splits, strict=True
            ):
                assert image is not None and name is not None
                places.setdefault(image, (file, name))
                if text.strip():
                    of = shard_split(file) if stated is None else split_name(stated) or stated
                    rows.append((image, text.strip(), of))
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


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise BenchmarkError(str(damaged_parquet(file, error))) from error


def _pictures(file: Path, schema: pa.Schema) -> str | None:
    try:
        return picture_column(schema)
    except InputError as error:
        raise BenchmarkError(
            f"{file}: several columns may hold the pictures; call one of them 'image', among {listed_types(schema)}"
        ) from error


def _batches(file: Path) -> Iterator[RowBatch]:
    schema = _schema(file)
    try:
        choose_columns(schema.names, ColumnNames(), str(file))
    except InputError as error:
        raise BenchmarkError(
            f"{file} has none of the columns {', '.join(CAPTION)}, nor caption_0, caption_1, …; "
            f"call the one with the captions so, among {listed_types(schema)}"
        ) from error
    by_content = SourceOptions(path=file.name, columns=ColumnNames(image=_pictures(file, schema)))
    try:
        for batch in read_parquet(file, by_content):
            _check(file, batch)
            yield batch
    except InputError as error:
        raise BenchmarkError(str(error)) from error


def _check(file: Path, batch: RowBatch) -> None:
    # A row left out would make the pool smaller, and retrieval in it easier, unsaid.
    texts = list(zip(batch.rows, batch.captions, strict=True))
    captioned = {row for row, text in texts if text.strip()}
    problems = [(reject.row, reject.detail) for reject in batch.rejects if reject.row not in captioned]
    problems += [(row, "a blank caption, expected text") for row in batch.rows if row not in captioned]
    problems += [(row, f"caption {text[:60]!r} is not valid UTF-8") for row, text in texts if not decodable([text])]
    for row, problem in problems[:1]:
        raise BenchmarkError(f"{file}, row {row} (from 0): {problem}")
