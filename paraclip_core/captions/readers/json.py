"""JSON records: one object a line or one array of objects.

Of a record, a list of captions counts as a row for each.
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
"""Sets of fields whose columns are remembered; most records of a file have the same ones."""


def is_jsonl(start: bytes) -> bool:
    """Whether JSON that begins so is an array, an object a line, or one object on its line."""
    first, _, rest = start.partition(b"\n")
    return start.startswith(b"[") or rest.lstrip().startswith(b"{") or first.rstrip().endswith(b"}")


def read_jsonl(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every object as a row; rows are line numbers, or positions from 0 in a file that is one array."""
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
    """Number and value of each line, or an exception if it is not JSON; of a file that is one array, its items."""
    with open_bytes(path) as file:
        is_array = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if is_array:
        # An object a line never begins with a bracket, so this is one document.
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
        raise InputError(f"{path} is not valid JSON ({error}); mend it or fetch it again") from error


def top_level_list(document: Any, key: str, path: Path, form: str) -> list[Any]:
    """The list that the document has under `key`; any other document is not in the format `form`."""
    rows = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path} is not in {form} format: it is no object with a list {key!r}")
    return rows
