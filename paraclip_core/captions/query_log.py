"""Turns a log of queries into distinct queries: how often each was asked, which image was clicked, and rejects.

Equal queries, apart from letter case, are one row with the sum of their counts. Queries that may identify a person are
left out, as are those that no text encoder can know: addresses, file names, identifiers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import regex

from paraclip_core import tables
from paraclip_core.captions.columns import QueryColumnNames
from paraclip_core.captions.counts import Outcome
from paraclip_core.captions.filters import cleaned
from paraclip_core.captions.options import DataOptions
from paraclip_core.captions.pieces import pieces_of
from paraclip_core.captions.rows import Problem, Reject, RowBatch, reject_batch
from paraclip_core.captions.sources import SourceFile, read_source
from paraclip_core.captions.splits import configured_split, split_name
from paraclip_core.captions.stems import stem_keys
from paraclip_core.lifetime import TempDir

BATCH = 8192
RARE_TOKENS = 5
"""Tokens of a single word from which it is a code or noise, unless several people asked for it: of the words of
Flickr8k's captions one in a thousand has as many."""
_EMAIL = regex.compile(r"\S+@\S+\.\w+")
_NUMBER = regex.compile(r"(?<!\w)\+?\d(?:[\s().\p{Pd}/]{0,3}\d){6,}(?!\w)")
_URL = regex.compile(r"(?i)\b(?:https?://|www\.)\S+|\b[\w.-]+\.(?:com|org|net|io|de|co|uk|fr)(?:/\S*)?$")
_FILE = regex.compile(r"(?i)^\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|pdf|mp4|mov|svg)$")
_CODE = regex.compile(r"(?=\S*\d)(?=\S*[\p{L}_])\S{6,}|[\d_#-]{4,}")

ROWS = "CREATE TABLE log (query VARCHAR, image VARCHAR, split VARCHAR, license VARCHAR, count BIGINT, spot BIGINT)"
# The first row of a query decides its spelling, file and license; of images clicked as often, the one clicked first.
DISTINCT = """
    CREATE TABLE queries AS
    WITH clicks AS (
        SELECT lower(query) AS key, image, sum(count) AS clicks, min(spot) AS spot, arg_min(query, spot) AS query,
               arg_min(split, spot) AS split, arg_min(license, spot) AS license
        FROM log GROUP BY ALL
    )
    SELECT arg_min(query, spot) AS query, arg_min(split, spot) AS split, arg_min(license, spot) AS license,
           first(image ORDER BY clicks DESC, spot) FILTER (WHERE image IS NOT NULL) AS image,
           CAST(sum(clicks) AS BIGINT) AS count, min(spot) AS spot
    FROM clicks GROUP BY key
"""
FROM_FILE = "SELECT * FROM queries WHERE spot >= $start AND spot < $stop ORDER BY spot"
REJECTED = "INSERT INTO rejects SELECT $file, source_row, reason, detail, caption_raw FROM rows"
FILE_ROWS = 1 << 40
"""Rows that a file has at most."""


class QueryLog:
    """Processes the files of a log, which are read once, when the first of them is asked for.

    Memory is bounded by DuckDB, which works in a temporary folder. Counterpart of
    :class:`paraclip_core.captions.pipeline.CaptionPipeline`.
    """

    def __init__(self, options: DataOptions, files: Sequence[SourceFile]) -> None:
        self._options, self._files = options, list(files)
        self._folder = TempDir("query-log-")
        # A stage's process ends without running exit handlers.
        weakref.finalize(self, self._folder.remove)
        self._database: duckdb.DuckDBPyConnection | None = None

    @property
    def images(self) -> int:
        """Number of images that were clicked."""
        (count,) = self._read().sql("SELECT count(DISTINCT image) FROM queries").fetchall()[0]
        return int(count)

    def run(self, file: SourceFile) -> Iterator[Outcome]:
        """The distinct queries that a file has first, and its rejects.

        With `on_error: skip` an unreadable file gives one reject without a row.
        """
        con, number = self._read(), self._files.index(file)
        bounds = {"start": number * FILE_ROWS, "stop": (number + 1) * FILE_ROWS}
        rejects = con.sql("SELECT * FROM rejects WHERE file = $file ORDER BY row", params={"file": number})
        for rows in rejects.to_arrow_reader(BATCH):
            columns = (column.to_pylist() for column in rows.columns[1:])
            listed = [Reject(*row) for row in zip(*columns, strict=True)]
            nothing = pa.RecordBatch.from_pylist([], schema=tables.QUERY_LOG)
            yield Outcome(nothing, reject_batch(listed, file.name))
        for batch in con.sql(FROM_FILE, params=bounds).to_arrow_reader(BATCH):
            yield self._outcome(batch, file, bounds["start"])

    def restore(self, accepted: pa.RecordBatch) -> None:
        """Nothing is remembered from an earlier attempt: the log is read again."""

    def _read(self) -> duckdb.DuckDBPyConnection:
        if self._database is None:
            folder = self._folder.path
            config = tables.DUCKDB | {"temp_directory": str(folder / "spill")}
            con = duckdb.connect(str(folder / "log.duckdb"), config=config)
            con.execute(ROWS)
            con.execute("CREATE TABLE rejects (file BIGINT, row BIGINT, reason VARCHAR, detail VARCHAR, text VARCHAR)")
            for number, file in enumerate(self._files):
                for batch in read_source(_as_log(file), self._options.on_error):
                    self._store(con, batch, file, number)
            con.execute(DISTINCT)
            self._database = con
        return self._database

    def _store(self, con: duckdb.DuckDBPyConnection, batch: RowBatch, file: SourceFile, number: int) -> None:
        batch.drop_undecodable()
        texts: list[str] = []
        counts: list[int] = []
        splits: list[str | None] = []
        problems: list[Problem | None] = []
        of_file = None if file.options.split is None else configured_split(file.options.split)
        for raw, named, count in zip(batch.captions, batch.splits, batch.counts, strict=True):
            text, problem = cleaned(raw, self._options)
            problem = problem or not_a_query(text)
            split = None if named is None else split_name(named)
            if problem is None and named is not None and split is None:
                problem = "unknown_split", f"split {named[:80]!r}, expected train, val or test"
            if problem is None and count is not None and not (count.isdecimal() and int(count)):
                problem = "bad_count", f"count {count[:80]!r}, expected a whole number above 0"
            problems.append(problem)
            if problem is None:
                texts.append(text)
                splits.append(split or of_file)
                counts.append(int(count or 1))
        batch.drop(problems)
        spots = [number * FILE_ROWS + row for row in batch.rows]
        columns: dict[str, Any] = {
            "query": pa.array(texts, pa.string()),
            "image": pa.array(batch.image_ids, pa.string()),
            "split": pa.array(splits, pa.string()),
            "license": pa.array([name or file.options.license for name in batch.licenses], pa.string()),
            "count": pa.array(counts, pa.int64()),
            "spot": pa.array(spots, pa.int64()),
        }
        con.register("rows", pa.table(columns))
        con.execute("INSERT INTO log SELECT * FROM rows")
        con.unregister("rows")
        if batch.rejects:
            # The table of rejects makes its texts safe.
            plain = reject_batch(batch.rejects, file.name)
            con.register("rows", pa.Table.from_batches([plain]))
            con.execute(REJECTED, {"file": number})
            con.unregister("rows")

    def _outcome(self, batch: pa.RecordBatch, file: SourceFile, start: int) -> Outcome:
        texts: list[str] = batch["query"].to_pylist()
        rows = pa.array(np.asarray(batch["spot"]) - start, pa.int64())
        rare = [
            count == 1 and " " not in text and pieces_of(text) >= RARE_TOKENS
            for text, count in zip(texts, batch["count"].to_pylist(), strict=True)
        ]
        share = self._options.held_out
        held_out = stem_keys(texts, "held out") < share * 2.0**64
        splits = [
            named or ("val" if held else "train")
            for named, held in zip(batch["split"].to_pylist(), held_out.tolist(), strict=True)
        ]
        detail = f"one word of {RARE_TOKENS} tokens or more, asked once"
        rejects = [
            Reject(row, "rare_token", detail, text)
            for row, text, rejected in zip(rows.to_pylist(), texts, rare, strict=True)
            if rejected
        ]
        count = len(texts)
        nothing = pa.nulls(count, pa.string())
        columns = [
            pa.array([tables.text_hash(None, text) for text in texts], pa.binary(16)),
            batch["image"], nothing, nothing, batch["query"], batch["query"],
            pa.array(splits, pa.string()), batch["license"], pa.repeat(pa.scalar(file.name, pa.string()), count), rows,
            batch["count"],
        ]  # fmt: skip
        accepted = pa.RecordBatch.from_arrays(
            [column.cast(of.type) for column, of in zip(columns, tables.QUERY_LOG, strict=True)],
            schema=tables.QUERY_LOG,
        )
        return Outcome(
            accepted.filter(pa.array([not rejected for rejected in rare], pa.bool_())), reject_batch(rejects, file.name)
        )


def not_a_query(text: str) -> Problem | None:
    """Why a cleaned text may not be used as a query, or None if it may."""
    if _EMAIL.search(text):
        return "personal", "it holds an e-mail address"
    if _NUMBER.search(text):
        return "personal", "it holds a telephone number or another long number"
    if _URL.search(text) or _FILE.match(text):
        return "identifier", "a URL or a file name"
    if " " not in text and _CODE.fullmatch(text):
        return "identifier", "an identifier, letters with digits"
    return None


def _as_log(file: SourceFile) -> SourceFile:
    """The file, to be read by the names that a log's columns have."""
    columns = QueryColumnNames.model_validate(file.options.columns.model_dump())
    return replace(file, options=file.options.model_copy(update={"columns": columns}))
