"""JSON: records, one object a line or one array of objects; COCO's captions; Karpathy's splits.

Of a record, a list of captions counts as a row for each.

COCO has ``images`` with file names and ``annotations`` with captions. The image id is COCO's as text, the path is
``file_name``; the licence is the image's, where the file names it.

Karpathy's files (``dataset_coco.json``, ``dataset_flickr8k.json`` …) have images with their sentences. The image id is
the file name, the path is ``filepath/filename``; COCO's ``restval`` counts as train, as usual.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.text import decode, numbered_lines, open_bytes
from paraclip_core.captions.rows import Batcher, RowBatch, choose_columns
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

REMEMBERED = 1000
"""Sets of fields whose columns are remembered; most records of a file have the same ones."""
COCO_MARKS = b'"annotations"', b'"file_name"', b'"coco_url"'
KARPATHY_MARKS = b'"sentences"', b'"sentids"'


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
    """Number and value of each line, or an exception where it is not JSON; of a file that is one array, its items."""
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


def _top_level_list(document: Any, key: str, path: Path, form: str) -> list[Any]:
    rows = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path} is not in {form} format: it is no object with a list {key!r}")
    return rows


def is_coco(start: bytes) -> bool:
    return start.startswith(b"{") and _holds(start, COCO_MARKS) and not _holds(start, KARPATHY_MARKS)


def is_karpathy(start: bytes) -> bool:
    return start.startswith(b"{") and _holds(start, KARPATHY_MARKS)


def _holds(start: bytes, marks: tuple[bytes, ...]) -> bool:
    return any(mark in start for mark in marks)


def read_coco(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every annotation as a row; rows are positions in ``annotations``, from 0."""
    document = load_json(path)
    annotations = _top_level_list(document, "annotations", path, "COCO")
    names = {
        row["id"]: (row.get("file_name"), row["license"] if isinstance(row.get("license"), int) else None)
        for row in _objects(document, "images")
        if isinstance(row.get("id"), int | str)
    }
    licences: dict[int | None, str] = {
        row["id"]: row["name"]
        for row in _objects(document, "licenses")
        if isinstance(row.get("id"), int) and isinstance(row.get("name"), str)
    }
    batcher = Batcher()
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            batcher.reject(number, "wrong_type", f"a {type(annotation).__name__}, expected an annotation object")
        else:
            image = annotation.get("image_id")
            entry = names.get(image) if isinstance(image, int | str) else None
            if entry is None and names:
                batcher.reject(number, "missing_field", f"image_id {str(image)[:80]!r} is not among the file's images")
            else:
                file_name, licence = entry or (None, None)
                batcher.add(number, annotation.get("caption"), image, file_name, None, licences.get(licence))
        yield from batcher.full()
    yield from batcher.rest()


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = document.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def read_karpathy(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every sentence as a row; rows count the file's sentences from 0."""
    images = _top_level_list(load_json(path), "images", path, "Karpathy")
    batcher, number = Batcher(), 0
    for image in images:
        sentences = image.get("sentences") if isinstance(image, dict) else None
        if not isinstance(sentences, list):
            batcher.reject(number, "missing_field", "an image without a list of sentences")
            continue
        name, folder = image.get("filename"), image.get("filepath")
        for place, sentence in enumerate(sentences, number):
            caption = sentence.get("raw") if isinstance(sentence, dict) else None
            if isinstance(name, str) and name:
                inside = f"{folder}/{name}" if isinstance(folder, str) and folder else name
                batcher.add(place, caption, name, inside, image.get("split"))
            else:
                raw = caption if isinstance(caption, str) else None
                batcher.reject(place, "missing_field", "an image without a filename", raw)
        number += len(sentences)
        yield from batcher.full()
    yield from batcher.rest()
