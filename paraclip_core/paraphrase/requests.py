"""What goes to a language model: requests and their keys, a step's tables of them, and the prompts.

Equal keys of requests mean that the same answer may be used again. A key is blake2b-128 over step, model, prompt (id
and text), sampling, seed, attempt and input text, each with its length in front, so that no two different requests can
run together into the same bytes.

A step's requests are a table in DuckDB with a row for each row of the step and attempt. What is missing is an anti-join
of it with the cache's `generations`, what is not judged one with `verdicts`, over all rows at once. Texts stay in the
step's Parquet files and are read again for the rows that need them.

A prompt holds the text as data inside exactly one message.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.texts import tidy
from paraclip_core.tables import ANSWERS, VERDICTS, text_hash

Turns = tuple[tuple[str, str], ...]
RULES = "neutralise-1 tidy-1"
SLOT = "{}"

KEY_BYTES = 16
FORMAT = "paraclip-request-1"

CONFIG: dict[str, Any] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
TAKEN_ROWS = 65_536
NO_PARENT = bytes(16)
"""Parent of step 1's generations: they come from no other."""

Batches = Callable[[Sequence[str]], Iterable[pa.RecordBatch]]
"""Reads the named columns of a step's rows (`INPUT_COLUMNS[step]`), from first to last; may be called again."""

INPUT_COLUMNS = {
    1: ("caption_id", "image_id", "caption", "caption_tokens", "licence"),
    2: (
        "caption_id", "image_id", "caption", "paraphrase_1", "caption_tokens", "paraphrase_1_tokens", "similarity_1",
        "licence", "generation_1",
    ),
}  # fmt: skip
"""Columns of the rows that each step reads: of the captions at step 1, of step 1's output at step 2."""

# `parent` is null at step 1; a constant of 16 bytes for each of ten million rows would be 300 MB.
MACROS = """
CREATE MACRO parent_of(parent) AS coalesce(parent, getvariable('no_parent'));
CREATE MACRO in_round(attempt, row, round, rows) AS
  attempt = round AND (rows::BIGINT[] IS NULL OR list_contains(rows::BIGINT[], row));
"""
MISSING = """
SELECT min(r.row) AS row FROM requests r ANTI JOIN cache.generations g ON g.key = r.key
WHERE r.attempt = ? GROUP BY r.key ORDER BY 1
"""
JUDGED = """
CREATE OR REPLACE VIEW judged AS
SELECT r.row, r.attempt, r.key, v.accepted, v.answer, v.reason, v.detail
FROM requests r JOIN cache.verdicts v ON v.generation = r.key AND v.parent = parent_of(r.parent)
WHERE v.gates = getvariable('gates')
"""
UNJUDGED = """
SELECT min(r.row) AS row, r.key, r.parent, any_value(g.completions) AS completions
FROM requests r JOIN cache.generations g ON g.key = r.key
ANTI JOIN (SELECT * FROM cache.verdicts WHERE gates = getvariable('text_gates')) v
ON v.generation = r.key AND v.parent = parent_of(r.parent)
WHERE in_round(r.attempt, r.row, $attempt, $rows) GROUP BY r.key, r.parent
"""
UNDECIDED = """
SELECT min(r.row) AS row, any_value(v) AS verdict
FROM requests r JOIN (SELECT * FROM cache.verdicts WHERE gates = getvariable('text_gates')) v
ON v.generation = r.key AND v.parent = parent_of(r.parent)
ANTI JOIN (SELECT * FROM cache.verdicts WHERE gates = getvariable('gates')) decided
ON decided.generation = v.generation AND decided.parent = v.parent
WHERE in_round(r.attempt, r.row, $attempt, $rows) GROUP BY r.key, r.parent
"""
REJECTED = """
SELECT row FROM judged GROUP BY row HAVING NOT bool_or(len(accepted) > 0) AND coalesce(max(attempt) = ?, true)
ORDER BY row
"""
FIRST_VERDICTS = """
SELECT row, reason, detail, answer FROM judged WHERE attempt = 0 AND list_contains(?::BIGINT[], row) ORDER BY row
"""


def sampling_json(sampling: SamplingOptions) -> str:
    """The sampling options as canonical JSON: sorted, without blanks, numbers in one spelling."""
    return json.dumps(sampling.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class RequestKeys:
    """Everything of a request but its text; makes the keys of many texts at once."""

    step: int
    model: str
    """Model id and revision."""
    prompt_id: str
    prompt_hash: bytes
    """16 bytes over the whole text of the prompt."""
    sampling: str
    """Canonical JSON of the sampling options."""
    seed: int
    attempt: int
    """0 for the first request about a text."""

    @cached_property
    def _head(self) -> hashlib.blake2b:
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        about = (self.prompt_hash, self.sampling, self.seed, self.attempt)
        for part in (FORMAT, self.step, self.model, self.prompt_id, *about):
            raw = part if isinstance(part, bytes) else _utf8(str(part))
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
        return digest

    def columns(self, engine: str) -> dict[str, Any]:
        """What the cache says of each generation of these requests (of `tables.GENERATIONS`)."""
        about = {"step": self.step, "attempt": self.attempt, "engine": engine, "model": self.model, "seed": self.seed}
        return about | {"prompt": self.prompt_id, "prompt_hash": self.prompt_hash, "sampling": self.sampling}

    def key(self, text: str) -> bytes:
        """The 16-byte key of one input text, which comes last and so needs no length."""
        digest = self._head.copy()
        digest.update(_utf8(text))
        return digest.digest()

    def keys(self, texts: Sequence[str]) -> pa.FixedSizeBinaryArray:
        """The keys of many input texts, in order, as an Arrow array of 16-byte values."""
        return pa.array(map(self.key, texts), pa.binary(KEY_BYTES))


def step_requests(options: ParaphraseOptions, step: int, model: str, attempt: int = 0) -> RequestKeys:
    """The keys of a step's requests at one attempt."""
    prompt = prompt_for(options, step)
    return RequestKeys(step, model, prompt.id, prompt.hash, sampling_json(options.sampling), options.seed, attempt)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class GenerationCache(Protocol):
    """Every generation that was ever paid for, and every verdict on one."""

    def attached(self, con: duckdb.DuckDBPyConnection) -> AbstractContextManager[None]:
        """Everything as tables `cache.generations` and `cache.verdicts` of `con`, for as long as the context lasts."""
        ...

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once, in any order."""
        ...

    def append(self, generations: pa.Table) -> None:
        """Keep generations (schema `paraclip_core.tables.GENERATIONS`); on return they survive a kill."""
        ...

    def append_verdicts(self, verdicts: pa.Table) -> None:
        """Keep verdicts (schema `paraclip_core.tables.VERDICTS`); on return they survive a kill."""
        ...


class StepTables:
    """The requests of one step, beside what the cache holds; close it at the end."""

    def __init__(
        self,
        step: int,
        cache: GenerationCache,
        batches: Batches,
        gates: bytes,
        scratch: Path,
        *,
        text_gates: bytes | None = None,
    ) -> None:
        """Begin without requests. Verdicts of the digest `gates` count; `scratch` is a folder for temporary files.

        `text_gates`: digest of the verdicts that come first, where a language model makes those of `gates` of them.
        """
        self.step, self.cache, self.batches, self.scratch, self.gates = step, cache, batches, scratch, gates
        self.source = source_column(step)
        self.rows = 0
        """Rows of the step, known once the requests of the first attempt are added."""
        scratch.mkdir(parents=True, exist_ok=True)
        self.con = duckdb.connect(":memory:", config=CONFIG | {"temp_directory": str(scratch / "duckdb.tmp")})
        self.con.execute("CREATE TABLE requests (row BIGINT, attempt SMALLINT, key BLOB, parent BLOB)")
        self.con.execute(MACROS)
        for name, digest in (("gates", gates), ("text_gates", text_gates or gates), ("no_parent", NO_PARENT)):
            self.con.execute(f"SET VARIABLE {name} = ?::BLOB", [digest])

    def close(self) -> None:
        self.con.close()

    def add(self, request: RequestKeys, rows: np.ndarray | None = None) -> int:
        """Add the requests of one attempt for the rows with these numbers (int64, ascending), or for all rows; how many
        different ones there are."""
        if rows is None:
            self.rows = 0
            for batch in self.batches(self._columns):
                self._insert(request, np.arange(self.rows, self.rows + batch.num_rows), batch)
                self.rows += batch.num_rows
        else:
            cursor = RowCursor(self.batches(self._columns))
            for start in range(0, len(rows), TAKEN_ROWS):
                numbers = rows[start : start + TAKEN_ROWS]
                self._insert(request, numbers, cursor.take(numbers))
        return self._count("SELECT count(DISTINCT key) FROM requests WHERE attempt = ?", request.attempt)

    def missing(self, attempt: int) -> np.ndarray:
        """Rows (int64, ascending) whose request has no answer, the first one of each request."""
        with self.cache.attached(self.con):
            return self._numbers(MISSING, attempt)

    def with_texts(self, request: RequestKeys, rows: np.ndarray, count: int) -> Iterator[pa.Table]:
        """The requests of these rows as `tables.ANSWERS` with `text`, what they are about, in place of the answers, so
        many at a time."""
        cursor = RowCursor(self.batches(list(dict.fromkeys(("caption", *self._columns)))))
        for start in range(0, len(rows), count):
            taken = cursor.take(rows[start : start + count])
            texts = taken.column(self.source).to_pylist()
            no_parent = pa.repeat(pa.scalar(NO_PARENT, pa.binary(KEY_BYTES)), len(texts))
            parents = taken.column("generation_1") if self.step == 2 else no_parent
            captions, sources = taken.column("caption"), taken.column(self.source)
            columns = [request.keys(texts), parents, captions, sources, pa.array(texts, pa.string())]
            yield pa.Table.from_arrays(columns, [*ANSWERS.names[:-1], "text"])

    def find_unjudged(self, attempt: int, rows: np.ndarray | None = None) -> int:
        """Collect the answers without a verdict, of all rows or of these alone, for :meth:`unjudged`; their number."""
        return self._collect("unjudged", UNJUDGED, attempt, rows)

    def unjudged(self, block_rows: int) -> Generator[pa.RecordBatch, None, None]:
        """Blocks (`tables.ANSWERS`) of what :meth:`find_unjudged` collected, by row."""
        cursor = RowCursor(self.batches(list(dict.fromkeys(("caption", self.source)))))
        for batch in self._stream("SELECT row, key, parent, completions FROM unjudged ORDER BY row", block_rows):
            taken = cursor.take(batch.column("row").to_numpy())
            parents = batch.column("parent").fill_null(NO_PARENT)
            columns = [batch.column("key"), parents, taken.column("caption"), taken.column(self.source)]
            yield answers_block(pa.Table.from_arrays(columns, ANSWERS.names[:-1]), batch.column("completions"))

    def find_undecided(self, attempt: int, rows: np.ndarray | None = None) -> int:
        """Collect the first verdicts that no last one has followed, for :meth:`undecided`; their number."""
        return self._collect("undecided", UNDECIDED, attempt, rows)

    def undecided(self, block_rows: int) -> Generator[tuple[list[str], pa.RecordBatch], None, None]:
        """Captions and verdicts (`tables.VERDICTS`) of what :meth:`find_undecided` collected, by row."""
        cursor = RowCursor(self.batches(["caption"]))
        for batch in self._stream("SELECT row, unnest(verdict) FROM undecided ORDER BY row", block_rows):
            captions = cursor.take(batch.column("row").to_numpy()).column("caption").to_pylist()
            columns = [batch.column(field.name).cast(field.type) for field in VERDICTS]
            yield captions, pa.RecordBatch.from_arrays(columns, schema=VERDICTS)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """While it lasts, the view `judged` has row, attempt, key and verdict of all requests that are judged."""
        with self.cache.attached(self.con):
            self.con.execute(JUDGED)
            yield

    def rejected(self, last: int | None = None) -> np.ndarray:
        """Rows (int64, ascending) that were judged, the `last` attempt if one is named, and have no accepted answer."""
        with self.judged():
            return self._numbers(REJECTED, last)

    def accepted(self) -> int:
        with self.judged():
            return self._count("SELECT count(DISTINCT row) FROM judged WHERE len(accepted) > 0")

    def first_verdicts(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Row, reason (None: accepted), detail and answer of the first attempts at these rows, where judged."""
        with self.judged():
            return self.con.sql(FIRST_VERDICTS, params=[rows.tolist()]).to_arrow_table().to_pylist()

    @property
    def _columns(self) -> list[str]:
        """What requests are made of."""
        return [self.source] if self.step == 1 else [self.source, "generation_1"]

    def _insert(self, request: RequestKeys, numbers: np.ndarray, batch: pa.RecordBatch | pa.Table) -> None:
        parents = batch.column("generation_1") if self.step == 2 else pa.nulls(batch.num_rows, pa.binary(KEY_BYTES))
        attempts = pa.repeat(pa.scalar(request.attempt, pa.int16()), batch.num_rows)
        columns = [pa.array(numbers), attempts, request.keys(batch.column(self.source).to_pylist()), parents]
        self.con.register("new", pa.Table.from_arrays(columns, ["row", "attempt", "key", "parent"]))
        self.con.execute("INSERT INTO requests FROM new")
        self.con.unregister("new")

    def _collect(self, table: str, query: str, attempt: int, rows: np.ndarray | None) -> int:
        """Keep what a query of a round gives, of all rows or of these alone, in a table; how many rows that has."""
        values = {"attempt": attempt, "rows": None if rows is None else rows.tolist()}
        with self.cache.attached(self.con):
            self.con.execute(f"CREATE OR REPLACE TABLE {table} AS {query}", values)
        return len(self.con.table(table))

    def _stream(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        # A cursor of its own: other queries on the connection would end the stream.
        with closing(self.con.cursor()) as cursor:
            yield from cursor.sql(query).to_arrow_reader(rows)

    def _numbers(self, query: str, *parameters: object) -> np.ndarray:
        return self.con.execute(query, list(parameters)).fetchnumpy()["row"].astype(np.int64)

    def _count(self, query: str, *parameters: object) -> int:
        return self.con.execute(query, list(parameters)).fetchall()[0][0]


def answers_block(requests: pa.Table, completions: pa.Array) -> pa.RecordBatch:
    """Requests as of :meth:`StepTables.with_texts` with the answers to each, as `tables.ANSWERS`."""
    (block,) = (
        requests.select(ANSWERS.names[:-1])
        .append_column("completions", completions)
        .cast(ANSWERS)
        .combine_chunks()
        .to_batches()
    )
    return block


class RowCursor:
    """Rows of a step by their numbers, which must ascend from call to call."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Read `batches` from the first row on, as far as rows are wanted."""
        self._batches = iter(batches)
        self._batch = pa.RecordBatch.from_pydict({})
        self._start = self._stop = 0

    def take(self, numbers: np.ndarray) -> pa.Table:
        """The rows with these numbers, int64, ascending."""
        pieces: list[pa.RecordBatch] = []
        done = 0
        while done < len(numbers):
            while numbers[done] >= self._stop:
                self._batch = next(self._batches)
                self._start, self._stop = self._stop, self._stop + self._batch.num_rows
            last = int(np.searchsorted(numbers, self._stop))
            pieces.append(self._batch.take(pa.array(numbers[done:last] - self._start)))
            done = last
        return pa.Table.from_batches(pieces)


def source_column(step: int) -> str:
    """Column with the text that a step paraphrases."""
    return "caption" if step == 1 else "paraphrase_1"


def in_fraction(text: str, fraction: float) -> bool:
    """Whether a caption belongs to the share that is paraphrased; depends on its text alone."""
    raw = hashlib.blake2b(_utf8(text), digest_size=8).digest()
    return int.from_bytes(raw, "little") / 2**64 < fraction


# A chat-template token of any model begins with `<` or `[` and a letter, a bar or a slash: `<|im_end|>`, `</s>`,
# `<start_of_turn>`, `[INST]`, `[/INST]`. A blank after the bracket makes it plain text and leaves it readable.
_TOKEN_START = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]+\])")
# Some models' templates use the full-width forms.
_FULL_WIDTH = str.maketrans({"＜": "<", "＞": ">", "｜": "|"})


@dataclass(frozen=True)
class PromptTemplate:
    """A step's prompt: fixed turns, then one user turn that holds the text."""

    id: str
    turns: Turns
    """System turn and examples."""
    before: str = ""
    """Words of the last turn in front of the text."""
    after: str = ""
    """Words of the last turn behind the text."""
    quoted: bool = False
    """The text stands between double quotes, so it must not hold one."""
    completion: bool = False
    """Plain text to go on with, in no chat template: one message of the role `text`."""
    tidied: bool = False
    """Show the text without file names, links and shouting, which small models copy or take for words."""

    @cached_property
    def hash(self) -> bytes:
        """16 bytes over everything that decides what the model reads."""
        turns = [part for turn in self.turns for part in turn]
        flags = map(str, (self.quoted, self.tidied, self.completion))
        return text_hash(self.id, RULES, *turns, None, self.before, None, self.after, *flags)

    def messages(self, text: str) -> Turns:
        """The chat turns for one text, which is neutralized and never interpreted."""
        safe = neutralize(tidy(text) if self.tidied else text)
        if self.quoted:
            safe = safe.replace('"', "'")
        role = "text" if self.completion else "user"
        return (*self.turns, (role, f"{self.before}{safe}{self.after}"))

    @cached_property
    def examples(self) -> tuple[tuple[str, str], ...]:
        """The examples as (user, assistant) pairs."""
        return tuple(
            (one[1], two[1]) for one, two in pairwise(self.turns) if one[0] == "user" and two[0] == "assistant"
        )


def neutralize(text: str) -> str:
    """One line of plain text that no chat template takes for anything else.

    Control and line-breaking characters become blanks, invisible format characters (zero width, bidirectional
    overrides) go, and the brackets that begin a template's tokens are set apart from what follows.
    """
    line = " ".join((text if text.isascii() and text.isprintable() else _visible(text)).split())
    return _TOKEN_START.sub(lambda match: f"{match.group()} ", line)


def _visible(text: str) -> str:
    chars = []
    for char in text.translate(_FULL_WIDTH):
        category = unicodedata.category(char)
        if category in ("Cc", "Zl", "Zp"):
            chars.append(" ")
        elif category not in ("Cf", "Cs", "Co", "Cn"):
            chars.append(char)
    return "".join(chars)


def prompt_for(options: ParaphraseOptions, step: int) -> PromptTemplate:
    """The prompt of a step: the user's own where there is one, else the chosen set's."""
    own = options.prompt_1 if step == 1 else options.prompt_2
    if not own:
        return (PAPER if options.prompts == "paper" else FEW_SHOT)[step]
    before, slot, after = own.partition(SLOT)
    if not slot or SLOT in after:
        raise ConfigError(
            f"paraphrase.prompt_{step} must hold {SLOT} exactly once, where the text goes; found {own[:80]!r}"
        )
    return PromptTemplate(f"own/{step}", (), before, after, quoted=before.endswith('"') and after.startswith('"'))


def _few_shot(step: int, examples: Turns) -> PromptTemplate:
    turns = [turn for text, answer in examples for turn in (("user", text), ("assistant", answer))]
    return PromptTemplate(f"few-shot/{step}", tuple(turns), tidied=True)


# Word for word from the published code (one user message, no system turn).
PAPER = {
    1: PromptTemplate(
        "paper/1",
        (),
        'Paraphrase the given caption "',
        '" concisely while preserving the meaning.',
        quoted=True,
    ),
    2: PromptTemplate(
        "paper/2",
        (),
        'Paraphrase the given text "',
        '" concisely while preserving the meaning and avoiding use of existing words.',
        quoted=True,
    ),
}
"""The published prompts, for models that follow instructions."""

FEW_SHOT = {
    1: _few_shot(
        1,
        (
            ("photo of a gray kitten on a sofa", "There is a gray kitten sitting on a sofa."),
            ("A man is climbing up a ladder near a brick wall", "A man climbs a ladder close to a brick wall."),
            (
                "large silver train next to a purple rocket at the station stock photo",
                "A big silver train beside a purple rocket at the station.",
            ),
            (
                "Three children wearing coats stand by a brown door .",
                "Three kids in coats are standing next to a brown door.",
            ),
            (
                "in the forest, pink cupcake above tiny spoon | free image",
                "A pink cupcake over a little spoon in the forest.",
            ),
            (
                "monkey in red on a purple drum in a kitchen",
                "A monkey wearing red on top of a purple drum in a kitchen.",
            ),
        ),
    ),
    2: _few_shot(
        2,
        (
            ("A gray kitten on a sofa.", "A grey cat on a couch."),
            ("A purple rocket above a huge rock.", "A purple spaceship over an enormous stone."),
            ("A silver train beside a hut in the forest.", "A silver locomotive next to a cabin in the woods."),
            ("A monkey holding a pink cupcake.", "An ape with a pink cake."),
            ("A man on a ladder near a brown door.", "A guy on some steps close to a brown gate."),
            ("A tiny spoon on top of a red drum.", "A little spoon sitting on a red drum."),
            ("Three kids are running at the airport.", "Three children jog on the airfield."),
            ("A woman in a long white coat is speaking.", "A lady wearing a long white jacket is talking."),
        ),
    ),
}
"""Example turns for small models; step 1 shows cleaning, step 2 shows other words for the same things."""
