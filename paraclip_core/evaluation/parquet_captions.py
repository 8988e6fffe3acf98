"""Captions and their pictures inside of Parquet, a file or a folder of shards, as a benchmark.

The test split is told by a column `split` or by names such as ``test-00000-of-00002.parquet``; shards of another split
are not read. Images are told apart by their contents, so that rows which repeat a picture are one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.clean import split_name
from paraclip_core.captions.readers.columns import CAPTION, SPLIT, choose_columns
from paraclip_core.captions.readers.parquet import read_parquet
from paraclip_core.captions.rows import RowBatch, decodable
from paraclip_core.captions.sources import shard_split
from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.pool import ImagePool, shards_pool
from paraclip_core.evaluation.published import EVALUATION_SPLITS, Captions, of_split
from paraclip_core.pictures import damaged_parquet, listed_types, picture_column

__all__ = ["load_pictures", "picture_files"]

REWORDINGS = ("rewording", "caption2", "paraphrase")
NO_CAPTIONS = "dataset_infos.json"
"""What the hub puts beside the shards."""


def picture_files(path: Path, split: str | None = None, pairs: bool = False) -> list[Path]:
    """The Parquet files with pictures that a benchmark reads, sorted; none where its captions are in another format.

    Args:
        path: a file, or a folder that is searched with its subfolders, unless it holds captions as JSON.
        split: the split to take; None takes the test split, or val where there is no test split.
        pairs: leave files with pairs of captions to whoever reads pairs.

    Raises:
        BenchmarkError: a file is damaged, several of its columns may hold the pictures, or no file is of that split.
    """
    schemas = {file: _schema(file) for file in _candidates(path, pairs)}
    found = [file for file, schema in schemas.items() if _pictures(file, schema) is not None]
    if pairs and any(name in schemas[file].names for file in found for name in REWORDINGS):
        return []
    named = {file: None if SPLIT[0] in schemas[file].names else shard_split(file) for file in found}
    chosen = _wanted(split) or next((name for name in EVALUATION_SPLITS if name in named.values()), "test")
    kept = [file for file in found if named[file] in (None, chosen)]
    if found and not kept:
        splits = sorted({name for name in named.values() if name is not None})
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits by the files' names: {splits}")
    return kept


def load_pictures(path: Path, files: Sequence[Path], split: str | None = None) -> tuple[Captions, ImagePool]:
    """Read captions and tell their pictures apart; nulls and blanks beside other captions of a row are left out.

    Args:
        path: what the benchmark names, for messages.
        files: see :func:`picture_files`.
        split: as there.

    Raises:
        BenchmarkError: a file has no caption column, a row no picture or no caption, or nothing is of that split.
    """
    rows: list[tuple[str, str, str | None]] = []
    places: dict[str, tuple[Path, str]] = {}
    for file in files:
        for batch in _batches(file):
            for image, name, text, told in zip(
                batch.image_ids, batch.image_paths, batch.captions, batch.splits, strict=True
            ):
                assert image is not None and name is not None
                places.setdefault(image, (file, name))
                if text.strip():
                    of = shard_split(file) if told is None else split_name(told) or told
                    rows.append((image, text.strip(), of))
    captions = of_split(path, rows, _wanted(split))
    ids = list(dict.fromkeys(captions.image_ids))
    return captions, shards_pool(ids, [places[image] for image in ids])


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
    found = [file for file in path.rglob("*.parquet") if file.is_file()]
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


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
