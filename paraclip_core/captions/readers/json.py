"""JSON: records, one object a line or one array of objects; COCO's captions; Karpathy's splits.

Of a record, a list of captions counts as a row for each.

COCO has ``images`` with file names and ``annotations`` with captions. The image id is COCO's as text, the path is
``file_name``; the licence is the image's, where the file names it.

Karpathy's files (``dataset_coco.json``, ``dataset_flickr8k.json`` …) have images with their sentences. The image id is
the file name, the path is ``filepath/filename``; COCO's ``restval`` counts as train, as usual.

A file that cannot be read, or is not what its format says, raises InputError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.columns import (
    OPTIONS,
    Columns,
    find_columns,
    match_column,
    need_image,
    no_caption,
    no_column,
)
from paraclip_core.captions.readers.text import decode, numbered_lines, open_bytes
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import InputError

SEARCHED_RECORDS = 1000
"""Records among which every wanted field must turn up, or the file is taken for one with other fields."""
COCO_MARKS = b'"annotations"', b'"file_name"', b'"coco_url"'
KARPATHY_MARKS = b'"sentences"', b'"sentids"'
_NO_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*\]')


def is_jsonl(start: bytes) -> bool:
    """Whether JSON that begins so is an array, an object a line, or one object on its line."""
    return start.startswith(b"[") or _several_objects(start) or start.partition(b"\n")[0].rstrip().endswith(b"}")


def _several_objects(start: bytes) -> bool:
    """Whether the second line begins an object, too."""
    return start.partition(b"\n")[2].lstrip().startswith(b"{")


def read_jsonl(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every object as a row; rows are line numbers, or positions from 0 in a file that is one array."""
    batcher, columns, count = Batcher(), _Chooser(path, options), 0
    for count, (number, record) in enumerate(json_records(path), start=1):
        if isinstance(record, Exception):
            columns.note(InputError(f"line {number} of {path} is not JSON: {record}; expected one object a line"))
            batcher.reject(number, "bad_json", f"not a JSON object: {record}")
        elif not isinstance(record, dict):
            columns.note(InputError(f"record {number} of {path} is no JSON object; expected an object with a caption"))
            batcher.reject(number, "wrong_type", f"a JSON {type(record).__name__}, expected an object with a caption")
        else:
            chosen = columns.of(record)
            if chosen is None:
                batcher.reject(
                    number, "missing_field", f"no caption among the fields {', '.join(sorted(record))[:200]}"
                )
            else:
                keys = (record.get(name) if name else None for name in chosen.keys)
                batcher.add(number, itemgetter(*chosen.captions)(record), *keys)
        if count == SEARCHED_RECORDS:
            columns.check()
        yield from batcher.full()
    if count:
        columns.check()
    yield from batcher.rest()


class _Chooser:
    """Chooses the columns of each record by its fields; most records of a file have the same ones."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._path, self._options, self._named = path, options, options.columns
        self._chosen: dict[tuple[str, ...], Columns | None] = {}
        self._has_caption = self._has_image = False
        self._unseen = {name for _, name in options.columns.named()}
        self._error: InputError | None = None

    def note(self, error: InputError) -> None:
        """Remember the first error, for the case that no record is any good."""
        self._error = self._error or error

    def of(self, record: dict[str, Any]) -> Columns | None:
        """The record's columns, None where it has no caption."""
        fields = tuple(record)
        if fields not in self._chosen:
            if len(self._chosen) >= SEARCHED_RECORDS:
                self._chosen.clear()
            self._chosen[fields] = self._choose(fields)
        return self._chosen[fields]

    def check(self) -> None:
        """Raise the first error if no record had a caption, or a field that the user named never turned up."""
        if not self._has_caption and self._error is not None:
            raise self._error
        fields = next((fields for fields, columns in self._chosen.items() if columns), ())
        if self._has_caption and self._unseen:
            option, name = next(pair for pair in self._named.named() if pair[1] in self._unseen)
            raise no_column(option, name, fields, str(self._path))
        if self._has_caption and not self._has_image:
            need_image(None, fields, self._options, str(self._path))

    def _choose(self, fields: tuple[str, ...]) -> Columns | None:
        present = _present(self._named, fields, str(self._path))
        self._unseen -= {name for _, name in present.named()}
        columns = None
        if self._named.captions and not present.captions:
            self.note(no_column("caption", self._named.captions[0], fields, str(self._path)))
        elif (columns := find_columns(fields, present, str(self._path))) is None:
            self.note(no_caption(fields, str(self._path)))
        else:
            self._has_caption = True
            self._has_image = self._has_image or columns.image is not None
        return columns


def _present(chosen: ColumnNames, fields: tuple[str, ...], where: str) -> ColumnNames:
    """The wanted fields without those that are absent, which JSON writers leave out."""
    absent = {
        name for option, name in chosen.named() if match_column(fields, name, f"{OPTIONS}.{option}", where) is None
    }
    others: dict[str, Any] = {option: None for option, name in chosen.named() if name in absent and option != "caption"}
    captions = tuple(name for name in chosen.captions if name not in absent)
    return chosen.model_copy(update={**others, "caption": captions or None})


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
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        hint = (
            "it is cut short, fetch it again" if error.pos >= len(error.doc.rstrip()) else "mend it or fetch it again"
        )
        raise InputError(f"{path} is not valid JSON ({error.msg} at {where}); {hint}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply to be an annotation file") from error
    except ValueError as error:
        # A number of thousands of digits.
        raise InputError(f"{path} is not valid JSON ({error}); mend it or fetch it again") from error


def _top_level_list(document: Any, key: str, path: Path, form: str) -> list[Any]:
    """The list under `key` of the top-level object."""
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected an object in {form} format")
    rows = document.get(key)
    if not isinstance(rows, list):
        keys = ", ".join(sorted(map(str, document)))[:200] or "none"
        raise InputError(f"{path} has no list {key!r}, so it is not in {form} format; its fields are {keys}")
    return rows


def is_coco(start: bytes) -> bool:
    """Whether JSON that begins so is COCO's."""
    return start.startswith(b"{") and _holds(start, COCO_MARKS) and not _holds(start, KARPATHY_MARKS)


def is_karpathy(start: bytes) -> bool:
    """Whether JSON that begins so, and is not COCO's, is Karpathy's."""
    without_images = _NO_IMAGES.search(start) is not None and not _several_objects(start)
    return start.startswith(b"{") and (without_images or _holds(start, KARPATHY_MARKS))


def _holds(start: bytes, marks: tuple[bytes, ...]) -> bool:
    return any(mark in start for mark in marks)


def read_coco(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every annotation as a row; rows are positions in ``annotations``, from 0."""
    document = load_json(path)
    annotations = _top_level_list(document, "annotations", path, "COCO")
    if annotations and not any(isinstance(row, dict) and "caption" in row for row in annotations):
        raise InputError(f"{path} has annotations but no caption in them; expected a COCO captions file")
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
    if images and not any(isinstance(image, dict) and "sentences" in image for image in images):
        raise InputError(f"{path} has images but no sentences in them, so it is not in Karpathy format")
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
