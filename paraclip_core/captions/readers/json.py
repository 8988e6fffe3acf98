"""JSON records: one object per line or one array of objects.

A record with a list of captions gives one row per caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from paraclip_core.captions.columns import choose_columns
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.lines import decode, numbered_lines, open_bytes
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.errors import InputError

REMEMBERED = 1000
"""Number of field sets whose columns are cached; most records of a file have the same fields."""


def is_jsonl(start: bytes) -> bool:
    """Whether JSON with this start is an array, or has one object per line."""
    first, _, rest = start.partition(b"\n")
    return start.startswith(b"[") or rest.lstrip().startswith(b"{") or first.rstrip().endswith(b"}")


def read_jsonl(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield every object as a row, numbered by line, or by position from 0 if the file is an array."""
    batcher = Batcher()
    choose = lru_cache(REMEMBERED)(lambda fields: choose_columns(fields, options.columns))
    for number, record in json_records(path):
        if isinstance(record, Exception):
            batcher.reject(number, "bad_json", f"not a JSON object: {record}")
        elif not isinstance(record, dict):
            batcher.reject(number, "wrong_type", f"a JSON {type(record).__name__}, expected an object with a caption")
        elif (columns := choose(tuple(record))) is None:
            names = ", ".join(sorted(record))[:200]
            batcher.reject(number, "missing_field", f"no caption among the fields {names}")
        else:
            keys = (record.get(name) if name else None for name in columns.keys)
            batcher.add(number, itemgetter(*columns.captions)(record), *keys)
        yield from batcher.full()
    yield from batcher.rest()


def json_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line, or an exception if it is not JSON; for a file that is one array, of its items."""
    with open_bytes(path) as file:
        is_array = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if is_array:
        # JSON lines never begin with a bracket, so this is one document.
        yield from enumerate(load_json(path))
        return
    for number, line in numbered_lines(path):
        if line is None:
            yield number, ValueError("a line of more than 16 MiB")
        elif line and not line.isspace():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, error


def load_json(path: Path) -> Any:
    """The document's value; bytes that are not UTF-8 become lone surrogates inside its texts."""
    with open_bytes(path) as file:
        raw = file.read()
    try:
        return json.loads(decode(raw.removeprefix(b"\xef\xbb\xbf")))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); fix it or fetch it again") from error


def top_level_list(document: Any, key: str, path: Path, form: str) -> list[Any]:
    """The document's list under `key`; raises InputError naming the format `form` if there is none."""
    rows = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path} is not in {form} format: it is not an object with a list {key!r}")
    return rows
