"""The rows of a published data set: joined with what ingest knows of them, without opt-outs, in shards by split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.clean import clean
from paraclip_core.dataset_card import WordStatistics, word_statistics
from paraclip_core.errors import ArtifactError, InputError
from storage.parquet import PartWriter, iter_batches

__all__ = ["SHARD_ROWS", "TEXTS", "OptOuts", "ShardWriter", "Tally", "joined", "output_schema", "read_opt_outs"]

SHARD_ROWS = 200_000
"""Rows of a shard, and of memory."""
SAMPLES = 3
TEXTS = ("caption", "paraphrase_1", "paraphrase_2")
SIMILARITIES = ("similarity_1", "similarity_2")
SPLITS = {"val": "validation"}
"""Names that other libraries expect, where they differ from ours."""
ID_DIGITS = 32


def output_schema(paraphrases: Path) -> pa.Schema:
    """Columns of the data set; a similarity that no row of the artifact has is left out."""
    present = [name for name in SIMILARITIES if _has_values(paraphrases, name)]
    texts = [pa.field(name, pa.string(), nullable=False) for name in ("caption_id", *TEXTS)]
    about = [
        pa.field("image_id", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
    ]
    return pa.schema([*texts, *about, *(pa.field(name, pa.float32()) for name in present)])


def _has_values(folder: Path, column: str) -> bool:
    return any(batch.column(0).null_count < batch.num_rows for batch in iter_batches(folder, [column]))


def joined(paraphrases: Path, captions: Path) -> Iterator[pa.RecordBatch]:
    """Paraphrased rows with the `split` and `source` of their captions, batch by batch in the captions' order.

    Both tables are in the order of ingest, rewrites of a caption follow each other, and every paraphrased row has its
    caption, so one pass over each is enough.

    Raises:
        ArtifactError: a row's caption is not among the captions from there on.
    """
    columns = ("caption_id", *TEXTS, "image_id", "licence", *SIMILARITIES)
    # Artifacts keep the column's former spelling: another schema would make every one of them anew.
    names = ["license" if name == "licence" else name for name in columns] + ["split", "source"]
    known = iter_batches(captions, ("caption_id", "split", "source"))
    here = next(known, None)
    for batch in iter_batches(paraphrases, columns):
        while batch.num_rows:
            if here is None:
                raise ArtifactError(
                    f"{paraphrases}: the caption {batch.column('caption_id')[0].as_py().hex()} is not in {captions} in "
                    "its place; see `paraclip artifacts verify`, and run the same settings again"
                )
            places = _compute("index_in", batch.column("caption_id"), value_set=here.column("caption_id"))
            missing = _compute("index", places.is_null(), True).as_py()
            count = batch.num_rows if missing < 0 else missing
            about = here.select(["split", "source"]).take(places.slice(0, count))
            if count:
                arrays = [*batch.slice(0, count).columns, *about.columns]
                yield pa.RecordBatch.from_arrays(arrays, names=names)
            batch = batch.slice(count)
            if batch.num_rows:
                here = next(known, None)


def read_opt_outs(path: Path) -> list[str]:
    """The entries of an opt-out list, each once: a caption id, an image id or a caption a line.

    Raises:
        InputError: it cannot be read as UTF-8 text.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the opt-out list {path} cannot be read as UTF-8 text: {error}") from error
    return list(dict.fromkeys(filter(None, (line.strip() for line in lines))))


class OptOuts:
    """Finds the rows that an opt-out list names, and remembers what was found."""

    def __init__(self, entries: Sequence[str]) -> None:
        """A caption counts as it is in the data set, or as it was before it was cleaned."""
        self.entries = tuple(entries)
        self.rows = 0
        ids = [(bytes.fromhex(entry), entry) for entry in entries if _is_id(entry)]
        texts = [(text, entry) for entry in entries for text in (entry, clean(entry))]
        self._named: dict[str, dict[Any, set[str]]] = {
            "caption_id": _grouped(ids),
            "image_id": _grouped((entry, entry) for entry in entries),
            "caption": _grouped(texts),
        }
        self._sets = {name: pa.array(list(of)) for name, of in self._named.items() if of}
        self._found: set[str] = set()

    def without(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that nothing names."""
        named = pa.repeat(pa.scalar(False), batch.num_rows)
        for name, values in self._sets.items():
            column = batch.column(name).cast(values.type)
            places = _compute("index_in", column, value_set=values)
            for place in places.drop_null().unique().to_pylist():
                self._found |= self._named[name][values[place].as_py()]
            named = _compute("or_", named, places.is_valid())
        kept = batch.filter(_compute("invert", named))
        self.rows += batch.num_rows - kept.num_rows
        return kept

    @property
    def unmatched(self) -> list[str]:
        """Entries that named no row, in the list's order."""
        return [entry for entry in self.entries if entry not in self._found]


def _is_id(entry: str) -> bool:
    return len(entry) == ID_DIGITS and all(digit in "0123456789abcdefABCDEF" for digit in entry)


def _grouped(pairs: Any) -> dict[Any, set[str]]:
    found: dict[Any, set[str]] = {}
    for value, entry in pairs:
        found.setdefault(value, set()).add(entry)
    return found


class ShardWriter:
    """Writes ``<split>-00000-of-00002.parquet`` …, each split's rows in order; memory holds one shard a split."""

    def __init__(self, folder: Path, schema: pa.Schema, rows: int = SHARD_ROWS) -> None:
        """Write into `folder` shards of `rows` rows."""
        self._folder, self._schema, self._rows = folder, schema, rows
        self._writers: dict[str, PartWriter] = {}

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows with a column `split`."""
        for split in map(str, _compute("unique", batch.column("split")).to_pylist()):
            rows = batch.filter(_compute("equal", batch.column("split"), split))
            if split not in self._writers:
                self._writers[split] = PartWriter(self._folder, self._schema, SPLITS.get(split, split), self._rows)
            self._writers[split].write(rows.select(self._schema.names).cast(self._schema))

    def close(self) -> dict[str, int]:
        """Write what is left and name the shards; returns the rows of each split, training first."""
        for writer in self._writers.values():
            writer.close()
        counts = {}
        for split in sorted(self._writers, key=lambda name: (name != "train", name != "val", name)):
            name = SPLITS.get(split, split)
            counts[name] = self._writers[split].rows_written
            shards = sorted(self._folder.glob(f"{name}-*.parquet"))
            for shard in shards:
                shard.rename(shard.with_name(f"{shard.stem}-of-{len(shards):05d}.parquet"))
        return counts


class Tally:
    """Words of each text column, and a few samples, from batches that pass by."""

    def __init__(self) -> None:
        """Nothing has passed yet."""
        self._words: dict[str, Counter[int]] = {name: Counter() for name in TEXTS}
        self.samples: list[dict[str, Any]] = []
        """The rows with the smallest caption ids; of rewrites of one caption, the first in the alphabet."""

    def note(self, batch: pa.RecordBatch, columns: Sequence[str]) -> None:
        """Count a batch; samples show `columns`."""
        for name, counts in self._words.items():
            lengths = _compute("list_value_length", _compute("utf8_split_whitespace", batch.column(name)))
            for entry in _compute("value_counts", lengths).to_pylist():
                counts[entry["values"]] += entry["counts"]
        order = ("caption_id", *TEXTS)
        first = _compute("select_k_unstable", batch, k=SAMPLES, sort_keys=[(name, "ascending") for name in order])
        rows = self.samples + batch.select(list(columns)).take(first).to_pylist()
        self.samples = sorted(rows, key=lambda row: [row[name] for name in order])[:SAMPLES]

    def words(self) -> Mapping[str, WordStatistics]:
        """Statistics of each text column."""
        return {name: word_statistics(counts) for name, counts in self._words.items()}


def _compute(function: str, *values: Any, **options: Any) -> Any:
    """A function of `pyarrow.compute`, whose stubs name few of them."""
    return getattr(pc, function)(*values, **options)
