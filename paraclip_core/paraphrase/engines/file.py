"""Paraphrases that a user already has, as an engine: a request's answer is looked up by its input text.

A file that cannot be read, or lacks a column, raises InputError.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from paraclip_core.captions.clean import clean
from paraclip_core.captions.readers.columns import match_column
from paraclip_core.captions.readers.json import json_records, read_karpathy
from paraclip_core.captions.readers.parquet import parquet_records
from paraclip_core.captions.readers.text import csv_records, tsv_records
from paraclip_core.captions.rows import Reject, decodable
from paraclip_core.captions.sources import named_format
from paraclip_core.config import FileEngineOptions, ParaphraseOptions, SamplingOptions, SourceOptions
from paraclip_core.errors import InputError
from paraclip_core.paraphrase.engines.base import Completion, EngineContext, EngineFacts, Prompt
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paths import user_path

log = logging.getLogger(__name__)

LOOK_UP = 3
"""Raised when a text may find another paraphrase than before, so that answers kept from then do not count."""

ROLES = ("caption", "paraphrase_1", "paraphrase_2")
Row = tuple[str, str, str]
"""A text of each role, empty where there is none."""
Columns = Mapping[str, str | None]
"""Role → its column."""

_ASCII_WORD = re.compile(r"[a-z0-9]+").findall


class FileEngine:
    """Answers from a Parquet, JSONL, CSV or TSV file, or from the sibling captions of a Karpathy JSON.

    All but Parquet may be gzipped, under names that end in ``.gz``.

    Texts are compared by their words alone, after they were cleaned as captions and answers are: case, punctuation and
    blanks do not matter, and a file may be as raw as the captions' own. Where a text comes twice the first row counts.
    A text that the file does not hold gets a completion without answers. Rows that cannot be read as they were meant
    are left out (:meth:`rejects`).
    """

    name = "file"

    def __init__(self, path: Path, options: FileEngineOptions | None = None) -> None:
        """`options` names the columns."""
        self._path, self._options = path, options or FileEngineOptions()
        self._answers: dict[int, dict[str, str]] | None = None
        self._rejects: list[Reject] = []
        self._model = ""

    @classmethod
    def from_options(cls, options: ParaphraseOptions, context: EngineContext) -> FileEngine:
        """The engine of the paraphrase options."""
        return cls(context.data_root / user_path(options.file.path), options.file)

    @property
    def facts(self) -> EngineFacts:
        """A file, which is looked up and not asked."""
        return EngineFacts(
            on_device=False,
            shares_cores=True,
            deterministic=True,
            asks=False,
            look_up={"look_up": LOOK_UP},
            gates="off",
            one_process="a file is read faster by one process",
        )

    @property
    def model(self) -> str:
        """``file:`` and the hash of the file's bytes and of the columns that are read."""
        if not self._model:
            self._model = f"file:{self._digest()[:32]}"
        return self._model

    def _digest(self) -> str:
        try:
            with self._path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise InputError(
                f"paraphrase.file.path: cannot read {self._path}: {error.strerror or error} "
                "(the path is relative to data.root)"
            ) from error
        columns = (self._options.caption, self._options.paraphrase_1, self._options.paraphrase_2)
        digest.update(json.dumps([*columns, LOOK_UP]).encode())
        return digest.hexdigest()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """The file's paraphrase of each prompt's text, or none."""
        answers = self._load()
        texts = [answers.get(prompt.step, {}).get(_key(prompt.text)) for prompt in prompts]
        return [Completion((text,) if text else (), 0, 0) for text in texts]

    def rejects(self) -> list[Reject]:
        """The rows that are left out, by their numbers: lines from 1, rows of Parquet from 0."""
        self._load()
        return list(self._rejects)

    def close(self) -> None:
        """Forget the file's contents."""
        self._answers, self._rejects = None, []

    def _load(self) -> dict[int, dict[str, str]]:
        if self._answers is None:
            answers: dict[int, dict[str, str]] = {1: {}, 2: {}}
            rejects, good = [], 0
            for row in _rows(self._path, self._options):
                if isinstance(row, Reject):
                    rejects.append(row)
                    continue
                good += 1
                caption, first, second = row
                if first and (key := _key(clean(caption))):
                    answers[1].setdefault(key, first)
                # Step 2 is asked about what was made of the answer to step 1.
                if first and second and (key := _key(parse_answer(first))):
                    answers[2].setdefault(key, second)
            self._warn(rejects, good)
            self._answers, self._rejects = answers, rejects
        return self._answers

    def _warn(self, rejects: Sequence[Reject], good: int) -> None:
        if not rejects:
            return
        what = f"{len(rejects)} of {len(rejects) + good} rows of {self._path} cannot be used"
        first = f"the first is {'row' if named_format(self._path) == 'parquet' else 'line'} {rejects[0].row}"
        first += f" ({rejects[0].detail})"
        if not good:
            raise InputError(f"paraphrase.file.path: {what}, {first}; mend the file")
        log.warning("%s and are left out, %s", what, first)


def _key(text: str) -> str:
    """The words of a cleaned text. Marks are parts of letters: without them many Hindi and Thai words are the same."""
    low = text.casefold()
    if low.isascii():
        return " ".join(_ASCII_WORD(low))
    return " ".join("".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in low).split())


def _rows(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    readers = {"parquet": _parquet, "jsonl": _jsonl, "csv": _table, "tsv": _table, "json": _karpathy}
    reader = readers.get(named_format(path) or "")
    try:
        if reader is None:
            raise InputError(f"{path} is none of .{', .'.join(readers)}, .gz behind it or not")
        yield from reader(path, options)
    except InputError as error:
        raise InputError(f"paraphrase.file.path: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"paraphrase.file.path: cannot read {path}: {error}") from error


def _parquet(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    columns = _columns(pq.read_schema(path).names, options, path)
    for number, row in enumerate(parquet_records(path, list(filter(None, columns.values())))):
        yield _row(number, row, columns)


def _jsonl(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    names: dict[str, None] = {}
    columns: dict[tuple[str, ...], Columns] = {}
    for number, row in json_records(path):
        if isinstance(row, Exception):
            raise InputError(f"{path} line {number} is not JSON: {row}") from row
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is not a JSON object")
        fields = tuple(row)
        if fields not in columns:
            # Some writers leave out what is null.
            columns[fields] = _columns(fields, options, f"{path} line {number}", needed=("caption",))
            names |= dict.fromkeys(fields)
        yield _row(number, row, columns[fields])
    _columns(list(names), options, path)


def _table(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    records = tsv_records(path) if named_format(path) == "tsv" else csv_records(path)
    names = next(records, (1, None))[1] or []
    columns = _columns(names, options, path)
    for number, fields in records:
        if fields is None:
            raise InputError(f"{path} line {number} has more than 16 MiB")
        if len(fields) == len(names):
            yield _row(number, dict(zip(names, fields, strict=True)), columns)
        elif any(field.strip() for field in fields):
            # Whatever is missing or not quoted, the texts behind it are in other columns.
            detail = f"{len(fields)} fields, expected {len(names)}"
            detail += "; is a separator not quoted?" if len(fields) > len(names) else ""
            yield Reject(number, "missing_field", detail, ", ".join(fields))


def _karpathy(path: Path, options: FileEngineOptions) -> Iterator[Row]:
    """Each caption with the next human caption of its image, and the one after that, in a circle."""
    by_image: dict[str | None, dict[str, str]] = {}
    for batch in read_karpathy(path, SourceOptions(path=path.name)):
        for reject in batch.rejects[:1]:
            raise InputError(f"{path} is not in Karpathy's format: sentence {reject.row} (from 0): {reject.detail}")
        for image, caption in zip(batch.image_ids, batch.captions, strict=True):
            by_image.setdefault(image, {})[_key(clean(caption))] = " ".join(caption.split())
    for texts in map(list, map(dict.values, by_image.values())):
        for at, text in enumerate(texts if len(texts) > 1 else []):
            yield text, texts[(at + 1) % len(texts)], texts[(at + 2) % len(texts)]


def _columns(
    names: Sequence[str], options: FileEngineOptions, where: Path | str, needed: Sequence[str] = ROLES
) -> Columns:
    """The columns as the file writes them, whatever their case, blanks and underscores."""
    columns: dict[str, str | None] = {}
    for role in ROLES:
        column = getattr(options, role)
        columns[role] = match_column(names, column)
        if columns[role] is None and role in needed:
            raise InputError(
                f"{where} has no column {column!r}; it has {', '.join(names) or 'none'} "
                "(name yours with paraphrase.file.caption, .paraphrase_1 and .paraphrase_2)"
            )
    return columns


def _row(number: int, row: Mapping[str, Any], columns: Columns) -> Row | Reject:
    values = {name: None if name is None else row.get(name) for name in columns.values()}
    caption = values[columns["caption"]]
    shown = caption if isinstance(caption, str) else None
    for name, value in values.items():
        if not isinstance(value, str | None):
            return Reject(number, "wrong_type", f"{name} is of type {type(value).__name__}, expected text", shown)
        if not decodable([value]):
            return Reject(number, "not_utf8", f"{name} is not UTF-8", shown)
    # Of an answer only the first line would count.
    first, second, third = (" ".join((values[columns[role]] or "").split()) for role in ROLES)
    if not first:
        return Reject(number, "empty", f"nothing in {columns['caption']}, expected a caption", shown)
    return first, second, third
