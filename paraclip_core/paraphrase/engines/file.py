"""Paraphrases that a user already has, as an engine: answers are looked up by their input text.

In a file of captions alone, other captions of the same image serve as paraphrases: written by people, at no cost.

A file that cannot be read, or lacks a column, raises InputError.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from pyarrow import json as arrow_json

from paraclip_core.captions.clean import clean
from paraclip_core.captions.formats import detect, named_format, read
from paraclip_core.captions.options import SourceOptions
from paraclip_core.config import FileEngineOptions
from paraclip_core.errors import InputError
from paraclip_core.paraphrase.engines import (
    Completion,
    EngineContext,
    EngineFacts,
    EngineOptions,
    Prompt,
    SamplingOptions,
)
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paths import expand

log = logging.getLogger(__name__)

LOOK_UP = 5
"""Version of the lookup. Raise it if a text may find a different paraphrase than before, so that cached answers do not
count."""

MOST = 16
"""Maximum paraphrases of a caption, the upper bound of `paraphrase.keep`: a text shared by thousands of images is not
filtered with all of them."""

COLUMNS = ("caption", "paraphrase_1", "paraphrase_2")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])

_ASCII_WORD = re.compile(r"[a-z0-9]+").findall


class FileEngine:
    """Answers from a Parquet, JSONL, CSV or TSV file, or from the sibling captions of a file without paraphrases.

    Texts are cleaned as captions and answers are, then compared by their words alone. Several rows of one caption are
    several paraphrases of it. If a paraphrase 1 occurs twice, the first row's paraphrase 2 counts. A text missing from
    the file gets a completion without answers.
    """

    name = "file"
    facts = EngineFacts(on_device=False, shares_cores=True, asks=False, look_up={"look_up": LOOK_UP})

    def __init__(self, options: EngineOptions[FileEngineOptions], context: EngineContext) -> None:
        self._path = expand(context.data_root) / expand(options.options.path)
        self._answers: dict[int, dict[str, list[str]]] | None = None

    @cached_property
    def model(self) -> str:
        """``file:`` and a hash of the file's bytes and the columns that are read."""
        try:
            with self._path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise InputError(
                f"paraphrase.file.path: cannot read {self._path}: {error.strerror or error} "
                "(the path is relative to data.root)"
            ) from error
        digest.update(json.dumps([*COLUMNS, LOOK_UP]).encode())
        return f"file:{digest.hexdigest()[:32]}"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """The file's paraphrases of each prompt's text, or none."""
        answers = self._load()
        paraphrases = (answers.get(prompt.step, {}).get(_key(prompt.text), ()) for prompt in prompts)
        return [Completion(tuple(texts), 0, 0) for texts in paraphrases]

    def close(self) -> None:
        self._answers = None

    def _load(self) -> dict[int, dict[str, list[str]]]:
        if self._answers is None:
            answers: dict[int, dict[str, list[str]]] = {1: {}, 2: {}}
            for row in _rows(self._path):
                # Only the first line of an answer would count.
                caption, first, second = (" ".join((text or "").split()) for text in row)
                if first and (key := _key(clean(caption))):
                    paraphrases = answers[1].setdefault(key, [])
                    if len(paraphrases) < MOST and first not in paraphrases:
                        paraphrases.append(first)
                # Step 2 is asked about the parsed answer to step 1.
                if first and second and (key := _key(parse_answer(first))):
                    answers[2].setdefault(key, [second])
            self._answers = answers
        return self._answers


def _key(text: str) -> str:
    """The words of a cleaned text. Marks are parts of letters: without them, many Hindi and Thai words are equal."""
    low = text.casefold()
    if low.isascii():
        return " ".join(_ASCII_WORD(low))
    return " ".join("".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in low).split())


def _rows(path: Path) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Caption and both paraphrases of each row."""
    try:
        if not has_paraphrases(path):
            if named_format(path) == "json" and _names_paraphrases(path):
                raise InputError(f"{path}: expected JSON lines, a row each, and a name that ends in .jsonl")
            yield from _siblings(path)
            return
        for batch in _table(path).select(COLUMNS).cast(SCHEMA).to_batches(10_000):
            yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)
    except InputError as error:
        raise InputError(f"paraphrase.file.path: {error}") from error
    except KeyError as error:
        raise InputError(f"paraphrase.file.path: {path}: {error}; expected the columns {', '.join(COLUMNS)}") from error
    except pa.ArrowNotImplementedError as error:
        wanted = f"expected text in the columns {', '.join(COLUMNS)}, a row for each paraphrase"
        raise InputError(f"paraphrase.file.path: {path}: {error}; {wanted}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"paraphrase.file.path: cannot read {path}: {error}") from error


def has_paraphrases(path: Path) -> bool:
    """Whether the file has paraphrases, by its columns or its first rows (in JSONL, some rows may lack fields)."""
    kind = named_format(path)
    if kind == "parquet":
        return any(name in COLUMNS[1:] for name in pq.read_schema(path).names)
    return kind in ("jsonl", "csv", "tsv") and _names_paraphrases(path)


def _names_paraphrases(path: Path) -> bool:
    with pa.input_stream(str(path), compression="detect") as file:
        return b"paraphrase_" in file.read(1 << 16)


def _table(path: Path) -> pa.Table:
    kind = named_format(path)
    if kind == "parquet":
        return pq.read_table(path, columns=list(COLUMNS))
    with pa.input_stream(str(path), compression="detect") as file:
        if kind == "jsonl":
            only = arrow_json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore")
            return arrow_json.read_json(file, parse_options=only)
        torn: list[str] = []

        def skip(row: csv.InvalidRow) -> str:
            # Whatever is missing or not quoted, the texts after it are in the wrong columns.
            torn.append(f"{row.text[:80]!r} has {row.actual_columns} fields, expected {row.expected_columns}")
            return "skip"

        separator = "\t" if kind == "tsv" else ","
        table = csv.read_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=skip),
            convert_options=csv.ConvertOptions(column_types=SCHEMA, include_columns=list(COLUMNS)),
        )
        if torn:
            log.warning("%d rows of %s are skipped, the first: %s", len(torn), path, torn[0])
        return table


def _siblings(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each caption with the next two of its image, wrapping around; with two captions, the other one twice."""
    by_image: dict[str, dict[str, str]] = {}
    why = ""
    for batch in read(path, SourceOptions(path=path.name), detect(path)):
        # A row that ingest rejects, without a caption or an image, is no sibling.
        why = why or "".join(f"; row {reject.row} (from 0): {reject.detail}" for reject in batch.rejects[:1])
        for image, caption in zip(batch.image_ids, batch.captions, strict=True):
            if image and (key := _key(clean(caption))):
                by_image.setdefault(image, {})[key] = " ".join(caption.split())
    if not by_image:
        raise InputError(f"{path} has neither the columns {', '.join(COLUMNS)} nor captions with their images{why}")
    for texts in map(list, map(dict.values, by_image.values())):
        for at, text in enumerate(texts if len(texts) > 1 else []):
            others = [*texts[at + 1 :], *texts[:at]]
            yield text, others[0], others[min(1, len(others) - 1)]
