"""Paraphrases that a user already has, as an engine: a request's answer is looked up by its input text."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from paraclip_core.captions.clean import clean
from paraclip_core.captions.readers.columns import match_column
from paraclip_core.captions.readers.text import open_bytes
from paraclip_core.captions.rows import LONGEST_RECORD, Reject
from paraclip_core.config import FileEngineOptions, ParaphraseOptions, SamplingOptions
from paraclip_core.errors import InputError
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.protocol import Completion, EngineContext, EngineFacts, Prompt
from paraclip_core.paths import user_path

__all__ = ["LOOK_UP", "FileEngine"]

log = logging.getLogger(__name__)

LOOK_UP = 3
"""Raised when a text may find another paraphrase than before, so that answers kept from then do not count."""

Row = tuple[str, str, str]
"""Caption, paraphrase 1, paraphrase 2 (empty where there is none)."""

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
            shares_cores=True,
            deterministic=True,
            asks=False,
            gates="off",
            one_process="a file is read faster by one process",
        )

    @property
    def model(self) -> str:
        """``file:`` and the hash of the file's bytes and of the columns that are read.

        Raises:
            InputError: the file cannot be read.
        """
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
        """The file's paraphrase of each prompt's text, or none.

        Raises:
            InputError: the file cannot be read or lacks a column.
        """
        answers = self._load()
        texts = [answers.get(prompt.step, {}).get(_key(prompt.text)) for prompt in prompts]
        return [Completion((text,) if text else (), 0, 0) for text in texts]

    def rejects(self) -> list[Reject]:
        """The rows that are left out, by their numbers: lines from 1, rows of Parquet from 0.

        Raises:
            InputError: the file cannot be read, lacks a column or has no other rows.
        """
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
            self._tell(rejects, good)
            self._answers, self._rejects = answers, rejects
        return self._answers

    def _tell(self, rejects: Sequence[Reject], good: int) -> None:
        if not rejects:
            return
        what = f"{len(rejects)} of {len(rejects) + good} rows of {self._path} cannot be used"
        first = f"the first is {'row' if _suffix(self._path) == '.parquet' else 'line'} {rejects[0].row}"
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


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _rows(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    readers = {".parquet": _parquet, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".json": _karpathy}
    reader = readers.get(_suffix(path))
    if reader is None:
        raise InputError(f"paraphrase.file.path: {path} is none of {', '.join(readers)}, .gz behind it or not")
    try:
        yield from reader(path, options)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"paraphrase.file.path: cannot read {path}: {error}") from error


def _parquet(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        options = _matched(path, options, file.schema_arrow.names)
        _check(path, options, file.schema_arrow.names)
        batches = file.iter_batches(columns=[options.caption, options.paraphrase_1, options.paraphrase_2])
        for number, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches)):
            yield _row(number, row, options)


def _jsonl(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    names: dict[str, None] = {}
    matched: dict[tuple[str, ...], FileEngineOptions] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"paraphrase.file.path: {path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"paraphrase.file.path: {path} line {number} is not a JSON object")
        where, fields = f"{path} line {number}", tuple(row)
        if fields not in matched:
            matched[fields] = _matched(where, options, fields)
        if matched[fields].caption not in row:
            _check(where, options, fields)
        # Some writers leave out what is null.
        names |= dict.fromkeys(row)
        yield _row(number, row, matched[fields])
    _check(path, _matched(path, options, list(names)), list(names))


def _csv(path: Path, options: FileEngineOptions) -> Iterator[Row | Reject]:
    tabs = _suffix(path) == ".tsv"
    # Strict, or a quote that is never closed would swallow the rest of the file without a word.
    records = csv.reader(
        _lines(path),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    last = 0
    try:
        names = next(records, [])
        options = _matched(path, options, names)
        _check(path, options, names)
        last = records.line_num
        for fields in records:
            if len(fields) == len(names):
                yield _row(last + 1, dict(zip(names, fields, strict=True)), options)
            elif any(field.strip() for field in fields):
                # Whatever is missing or not quoted, the texts behind it are in other columns.
                detail = f"{len(fields)} fields, expected {len(names)}"
                detail += "; is a separator not quoted?" if len(fields) > len(names) else ""
                yield Reject(last + 1, "missing_field", detail, ", ".join(fields))
            last = records.line_num
    except csv.Error as error:
        raise InputError(
            f"paraphrase.file.path: {path} is not valid CSV in the record that begins at line {last + 1}: {error}"
        ) from error


def _lines(path: Path) -> Iterator[str]:
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_RECORD), b""), start=1):
            if len(line) == LONGEST_RECORD:
                raise InputError(f"paraphrase.file.path: {path} line {number} has more than 16 MiB")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"paraphrase.file.path: {path} line {number} is not UTF-8 ({error.reason}); convert the file"
                ) from error


def _karpathy(path: Path, options: FileEngineOptions) -> Iterator[Row]:
    """Each caption with the next human caption of its image, and the one after that, in a circle."""
    with open_bytes(path) as file:
        content = json.loads(file.read())
    try:
        for image in content["images"]:
            texts = list({_key(clean(s["raw"])): " ".join(s["raw"].split()) for s in image["sentences"]}.values())
            count = len(texts)
            for at, text in enumerate(texts):
                if count > 1:
                    yield text, texts[(at + 1) % count], texts[(at + 2) % count]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"paraphrase.file.path: {path} is not in Karpathy's format (images → sentences → raw): {error!r}"
        ) from error


def _matched(where: Path | str, options: FileEngineOptions, names: Sequence[str]) -> FileEngineOptions:
    """The options with the columns' names as the file writes them, whatever their case, blanks and underscores."""
    columns = {}
    for option in ("caption", "paraphrase_1", "paraphrase_2"):
        wanted, explicit = getattr(options, option), option in options.model_fields_set
        columns[option] = match_column(names, wanted, f"paraphrase.file.{option}", str(where), explicit) or wanted
    return options.model_copy(update=columns)


def _check(where: Path | str, options: FileEngineOptions, names: Sequence[str]) -> None:
    for wanted in (options.caption, options.paraphrase_1, options.paraphrase_2):
        if wanted not in names:
            raise InputError(
                f"paraphrase.file.path: {where} has no column {wanted!r}; it has {', '.join(names) or 'none'} "
                "(name yours with paraphrase.file.caption, .paraphrase_1 and .paraphrase_2)"
            )


def _row(number: int, row: dict[str, Any], options: FileEngineOptions) -> Row | Reject:
    texts = []
    for name in (options.caption, options.paraphrase_1, options.paraphrase_2):
        value = row.get(name)
        if not isinstance(value, str) and value is not None:
            kind = type(value).__name__
            return Reject(number, "wrong_type", f"{name} is of type {kind}, expected text", _shown(row, options))
        # Of an answer only the first line would count.
        texts.append(" ".join((value or "").split()))
    if not texts[0]:
        return Reject(number, "empty", f"nothing in {options.caption}, expected a caption", _shown(row, options))
    return texts[0], texts[1], texts[2]


def _shown(row: dict[str, Any], options: FileEngineOptions) -> str | None:
    caption = row.get(options.caption)
    return caption if isinstance(caption, str) else None
