"""Batch files: a run's missing requests are exported to a file, and their answers are imported into the cache.

The format is OpenAI batch JSONL, which `vllm run-batch` reads too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip.storage.answers import AnswerStore
from paraclip.storage.files import write_atomic
from paraclip.storage.locks import lock
from paraclip.storage.parquet import CONFIG
from paraclip.storage.roots import open_answers
from paraclip.tasks.missing_rounds import missing_rounds
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.paraphrase import spent
from paraclip.tasks.stages.queries import NAME as QUERIES
from paraclip_core.captions.rows import SHOWN_CHARS, Reject, reject_batch
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.evaluation.options import WHOLE
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.batch_lines import Refused, read_line, request_line
from paraclip_core.paraphrase.engines.chat import prompt_size
from paraclip_core.paraphrase.keys import RequestKeys
from paraclip_core.paraphrase.rounds import SENT_ROWS, Rounds
from paraclip_core.paraphrase.sending import prompts_of, storable
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import GENERATIONS, REJECTS

BLOCK_LINES = 10_000
"""Maximum answers in memory."""
WANTED = pa.schema([field for field in GENERATIONS if field.name not in ("completions", "completion_tokens")])
"""A missing request; its `prompt_tokens` are an estimate."""
NEW = """
SELECT w.* REPLACE (if(l.prompt_tokens < 0, w.prompt_tokens, l.prompt_tokens) AS prompt_tokens),
  l.completions, l.completion_tokens
FROM lines l JOIN wanted w USING (key)
QUALIFY row_number() OVER (PARTITION BY key ORDER BY l.line) = 1 ORDER BY l.line
"""
UNKNOWN = "this configuration asks no such request; was it exported with another one, or from other captions?"


@dataclass(frozen=True)
class Exported:
    """The contents of a batch file, and what is left out."""

    file: str
    model: str
    """The model, by its name at the server."""
    step_1: int
    """Requests of step 1, of training captions and of held-out ones."""
    step_2: int
    """Requests of step 2."""
    unanswered_1: int
    """Requests of step 1 without an answer, exported or not. Step 2 of their captions is unknown until then."""

    @property
    def requests(self) -> int:
        return self.step_1 + self.step_2


def export_requests(run: Run, path: Path, progress: Progress = silent) -> Exported:
    """Write a run's requests that the answers cache lacks, one per line; the file is written atomically.

    Requests of held-out queries are among them, unless `evaluate.queries` names another engine. Answers of step 1
    without a filter result are filtered first, because step 2 asks about accepted answers.
    """
    options = _askable(run).paraphraser.options
    counts, missing = {1: 0, 2: 0}, {1: 0, 2: 0}
    # A vendor refuses a file with an id that comes twice, as a held-out caption's paraphrase may be a training one's.
    of_queries = set[bytes]()

    def write(file: BinaryIO) -> None:
        for queries, rounds in _missing(run, progress):
            step = rounds.tables.step
            missing[step] += sum(len(rows) for _, rows in rounds.missing)
            for request, keys, texts in _requests(rounds):
                for key, prompt in zip(keys, prompts_of(request, options, texts), strict=True):
                    if key in of_queries:
                        continue
                    file.write(request_line(key, options.model, prompt, options.sampling, options.openai.extra_body))
                    counts[step] += 1
                if queries:
                    of_queries.update(keys)
                progress(sum(counts.values()), None, phase="writing requests")

    write_atomic(path, write)
    return Exported(str(path), options.model, counts[1], counts[2], missing[1])


def _askable(run: Run) -> Run:
    paraphraser = run.paraphraser
    options, engine = paraphraser.options, f"paraphrase.engine={paraphraser.options.engine}"
    problem = None
    if not paraphraser.facts.asks:
        problem = f"{engine} makes no requests; name the engine whose model should answer"
    elif not options.model:
        problem = f"{engine} has no paraphrase.model, which a batch file names; take openai, vllm or transformers"
    if problem is not None:
        raise ConfigError(problem)
    return run


def _missing(run: Run, progress: Progress) -> Iterator[tuple[bool, Rounds]]:
    """The unfinished steps, and whether they are those of held-out queries, which come first because they are few.

    Those are left out if another engine is asked for them, as a batch file is of one model.
    """
    artifacts, queries = run.artifacts(), run.query_paraphraser
    if queries is not None and queries.options == run.paraphraser.options.model_copy(update=WHOLE):
        for rounds in missing_rounds(run, QUERIES, artifacts, filtered=True, progress=progress):
            yield True, rounds
    for rounds in missing_rounds(run, "paraphrase_2", artifacts, filtered=True, progress=progress):
        yield False, rounds


def _requests(rounds: Rounds) -> Iterator[tuple[RequestKeys, list[bytes], list[str]]]:
    """The missing requests, block by block, with their keys and texts."""
    for request, rows in rounds.missing:
        for block in rounds.tables.with_texts(request, rows, SENT_ROWS):
            yield request, block.column("generation").to_pylist(), block.column("source").to_pylist()


@dataclass
class Imported:
    """Outcome of the lines of batch files."""

    lines: int = 0
    new: int = 0
    """Answers added to the cache."""
    declined: int = 0
    """Of these, the ones without text: the prompt was too long or against the rules."""
    answered: int = 0
    """Lines whose request was already answered, in the cache or by an earlier line."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected lines, by reason."""
    rejects: list[str] = field(default_factory=list)
    """Files with the rejected lines (`tables.REJECTS`)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend: float | None = None
    """Cost of these tokens at the configured prices; None without prices."""


def import_answers(run: Run, paths: Sequence[Path], progress: Progress = silent) -> Imported:
    """Import the answers to a run's requests into its answers cache, from batch output or error files.

    They are stored durably, part by part: after a kill, import the same files again; nothing is stored twice. Rejected
    lines are written next to each file, as `NAME.rejects.parquet`.
    """
    imported, expected = Imported(), run.paraphraser.options.sampling.draws
    with (
        # Two concurrent imports would both find the same requests missing.
        lock(run.store.cache / "requests-import.lock"),
        TempDir("requests-") as scratch,
        closing(duckdb.connect(":memory:", config=CONFIG | {"temp_directory": str(scratch)})) as con,
        closing(open_answers(run.store)) as cache,
    ):
        con.register("rows", WANTED.empty_table())
        con.execute("CREATE TABLE wanted AS FROM rows")
        for _, rounds in _missing(_askable(run), progress):
            for request, keys, texts in _requests(rounds):
                con.register("rows", _wanted(run, request, keys, texts))
                con.execute("INSERT INTO wanted FROM rows")
        for path in paths:
            rejects: list[Reject] = []
            for block in _blocks(path, expected):
                rejects += _import(block, con, cache, imported)
                progress(imported.lines, None, phase="keeping answers")
            _write_rejects(path, rejects, imported)
    imported.spend = spent(run.paraphraser.engine(), imported).get("spend")
    if imported.rejected and not (imported.new or imported.answered):
        reasons = ", ".join(f"{reason} {count}" for reason, count in imported.rejected.items())
        raise InputError(
            f"none of the {imported.lines} lines of {', '.join(path.name for path in paths)} answers a request of this "
            f"configuration ({reasons}; see {imported.rejects[0]}); expected what came back for a file of "
            "`paraclip requests export` with the same settings"
        )
    return imported


def _wanted(run: Run, request: RequestKeys, keys: list[bytes], texts: list[str]) -> pa.Table:
    same = request.columns(run.paraphraser.engine().name)
    columns: dict[str, list[Any]] = {name: [value] * len(keys) for name, value in same.items()}
    columns |= {"key": keys, "input": list(map(storable, texts))}
    columns["prompt_tokens"] = list(map(prompt_size, prompts_of(request, run.paraphraser.options, texts)))
    return pa.Table.from_pydict(columns, schema=WANTED)


def _blocks(path: Path, n: int) -> Iterator[list[tuple[int, Any, str]]]:
    """Number, answer and beginning of each line, in blocks of lines."""
    try:
        with path.open("rb") as file:
            numbered = ((line, raw) for line, raw in enumerate(map(bytes.strip, file), 1) if raw)
            while lines := list(islice(numbered, BLOCK_LINES)):
                yield [
                    (line, read_line(raw, n), raw[: 4 * SHOWN_CHARS].decode("utf-8", "replace")[:SHOWN_CHARS])
                    for line, raw in lines
                ]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _import(
    block: list[tuple[int, Any, str]], con: duckdb.DuckDBPyConnection, cache: AnswerStore, imported: Imported
) -> list[Reject]:
    """Store the new answers of a block; returns its rejected lines."""
    answers = [(line, *answer, raw) for line, answer, raw in block if not isinstance(answer, Refused)]
    refusals = [(line, answer, raw) for line, answer, raw in block if isinstance(answer, Refused)]
    rejects = [Reject(line, refused.reason, storable(refused.detail), raw) for line, refused, raw in refusals]
    keys = pa.array([key for _, key, _, _ in answers], pa.binary(16))
    completions = [completion for _, _, completion, _ in answers]
    answered = set(cache.lookup(keys).column("key").to_pylist())
    texts = [list(map(storable, completion.texts)) for completion in completions]
    lines = {
        "line": [line for line, *_ in answers],
        "key": keys,
        "completions": pa.array(texts, pa.list_(pa.string())),
        "prompt_tokens": pa.array([completion.prompt_tokens for completion in completions], pa.int32()),
        "completion_tokens": pa.array([completion.completion_tokens for completion in completions], pa.int32()),
    }
    con.register("lines", pa.table(lines))
    new = con.sql(NEW).to_arrow_table().select(GENERATIONS.names).cast(GENERATIONS)
    cache.append(new)
    con.execute("DELETE FROM wanted WHERE key IN (SELECT key FROM lines)")
    answered |= set(new.column("key").to_pylist())
    unknown = [(line, raw) for line, key, _, raw in answers if key not in answered]
    rejects += [Reject(line, "unknown_request", UNKNOWN, raw) for line, raw in unknown]
    imported.lines += len(block)
    imported.new += new.num_rows
    imported.answered += len(answers) - len(unknown) - new.num_rows
    imported.declined += sum(not texts for texts in new.column("completions").to_pylist())
    imported.prompt_tokens += sum(new.column("prompt_tokens").to_pylist())
    imported.completion_tokens += sum(new.column("completion_tokens").to_pylist())
    return rejects


def _write_rejects(path: Path, rejects: list[Reject], imported: Imported) -> None:
    target = path.with_name(f"{path.name}.rejects.parquet")
    for reject in rejects:
        imported.rejected[reject.reason] = imported.rejected.get(reject.reason, 0) + 1
    if not rejects:
        # From an earlier import, whose lines are valid now.
        target.unlink(missing_ok=True)
        return
    table = pa.Table.from_batches([reject_batch(rejects, path.name)], REJECTS)
    write_atomic(target, lambda file: pq.write_table(table, file, compression="zstd"))
    imported.rejects.append(str(target))
