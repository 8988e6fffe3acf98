"""Files of queries: a text file with one query per line, or a table (CSV, TSV, JSONL, JSON or Parquet)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from paraclip_core.errors import InputError
from paraclip_core.evaluation.published import field, records

QUERY = ("query", "caption")
"""Names of a table's column with the queries; the first that exists is read."""
PARAPHRASED = ("paraphrased_query", "paraphrase", "caption2")
"""Names of a table's column with their paraphrased queries."""
LONGEST_QUERY = 10_000
"""Maximum characters of a query; a text encoder reads about 300 of them."""


def read_queries(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Read queries without paraphrased queries, and pairs.

    A text file has one query per line. A table has the columns `query` (or caption) and `paraphrased_query` (or
    paraphrase); without the latter its queries are read alone. Empty and duplicate lines are skipped.
    """
    queries, pairs = list[str](), list[tuple[str, str]]()
    if _is_text(path):
        queries = _lines(path)
    elif not any(name in row for _, row in islice(records(path), 1) for name in PARAPHRASED):
        queries = list(dict.fromkeys(_column(path)))
    else:
        rows = (
            (field(path, number, row, *QUERY), field(path, number, row, *PARAPHRASED)) for number, row in records(path)
        )
        pairs = list(dict.fromkeys(row for row in rows if row[0] != row[1]))
    if not queries and not pairs:
        raise InputError(f"{path} holds no query; expected one per line, or rows with query and paraphrased_query")
    _check_lengths(path, [*queries, *(text for pair in pairs for text in pair)])
    return queries, pairs


def read_single_queries(path: Path) -> list[str]:
    """Read the distinct queries of a file in order: its lines, or its column `query` (or caption).

    Blank and duplicate ones are skipped.

    Raises:
        InputError: the file holds no query, a query that is too long, or text that is not UTF-8.
        BenchmarkError: the file is of another format, has no such column, or has something else than text in it.
    """
    queries = _lines(path) if _is_text(path) else list(dict.fromkeys(_column(path)))
    if not queries:
        raise InputError(f"{path} holds no query; expected one per line, or a column query")
    _check_lengths(path, queries)
    return queries


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (".txt", "")


def _lines(path: Path) -> list[str]:
    try:
        texts = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read queries from {path}: {error}; expected UTF-8 text") from error
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _column(path: Path) -> Iterator[str]:
    for number, row in records(path):
        column = next((name for name in QUERY if name in row), "")
        value = row.get(column)
        if column and (value is None or (isinstance(value, str) and not value.strip())):
            continue
        yield field(path, number, row, *([column] if column else QUERY))


def _check_lengths(path: Path, texts: list[str]) -> None:
    for text in texts:
        if len(text) > LONGEST_QUERY:
            raise InputError(f"{path}: a query of {len(text)} characters; expected at most {LONGEST_QUERY}")
