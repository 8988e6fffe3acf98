"""Batch files: missing requests as OpenAI batch JSONL, which `vllm run-batch` reads too, and the answers to them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip.storage.files import write_atomic
from paraclip.storage.locks import lock
from paraclip.tasks.requests import MissingRequests, looking_for_requests
from paraclip.tasks.run.run import Run
from paraclip_core.captions.rows import SHOWN_CHARS, Reject, reject_batch
from paraclip_core.errors import ArtifactError, ConfigError, InputError, one_line
from paraclip_core.paraphrase.engines.base import PaidEngine
from paraclip_core.paraphrase.engines.openai import draws, prompt_size
from paraclip_core.paraphrase.engines.openai_batch import Refused, read_line, request_line
from paraclip_core.paraphrase.generate import storable
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import GENERATIONS, REJECTS

BOTH_STEPS = (1, 2)
CONFIG: dict[str, Any] = {
    "memory_limit": "512MB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
PART_ROWS = 10_000
"""Answers that are kept at once."""
BATCH_LINES, BATCH_BYTES = 4096, 16_000_000
"""Lines that are in memory at once."""
LINES = pa.schema(
    [
        pa.field("file", pa.int32()),
        pa.field("line", pa.int64()),
        pa.field("key", pa.binary(16)),  # null where the line is of no use
        pa.field("completions", pa.list_(pa.string())),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("reason", pa.string()),  # null where the line answers a request
        pa.field("detail", pa.string()),
        pa.field("raw", pa.string()),  # its beginning
    ]
)
WANTED = pa.schema([field for field in GENERATIONS if field.name not in ("completions", "completion_tokens")])
"""A request that is missing; its `prompt_tokens` are an estimate."""
PLACE = """
CREATE TABLE placed AS SELECT l.file, l.line, CASE
    WHEN l.reason IS NOT NULL THEN 'refused'
    WHEN g.key IS NOT NULL THEN 'answered'
    WHEN w.key IS NOT NULL AND row_number() OVER (PARTITION BY l.key ORDER BY l.file, l.line) = 1 THEN 'new'
    WHEN w.key IS NOT NULL THEN 'repeated'
    ELSE 'unknown'
  END AS place
FROM read_parquet($lines) l LEFT JOIN read_parquet($wanted) w ON w.key = l.key
LEFT JOIN cache.generations g ON g.key = l.key
"""
NEW = """
SELECT w.* REPLACE (if(l.prompt_tokens < 0, w.prompt_tokens, l.prompt_tokens) AS prompt_tokens),
  l.completions, l.completion_tokens
FROM placed p JOIN read_parquet($lines) l USING (file, line) JOIN read_parquet($wanted) w ON w.key = l.key
WHERE p.place = 'new' ORDER BY p.file, p.line
"""
REJECTED = """
CREATE VIEW rejected AS
SELECT l.file, l.line, l.raw, coalesce(l.reason, 'unknown_request') AS reason,
  coalesce(l.detail, getvariable('unknown')) AS detail
FROM placed p JOIN read_parquet(getvariable('lines')) l USING (file, line) WHERE p.place IN ('refused', 'unknown')
"""
UNKNOWN = "this configuration asks no such request; was it exported with another one, or from other captions?"
"""What is said of an answer to nothing."""


@dataclass(frozen=True)
class Exported:
    """What a batch file holds, and what it does not."""

    file: str
    model: str
    """The model that is asked, by its name at the server."""
    step_1: int
    """Requests of step 1."""
    step_2: int
    """Requests of step 2."""
    unanswered_1: int
    """Requests of step 1 without an answer, exported or not. Step 2 of their captions is not known yet."""
    words: bool
    """Whether the run also asks for single words, which no batch file carries."""
    unjudged: int
    """Answers that only the run can judge, because it asks for single words first: what follows from them is not in
    the file."""

    @property
    def requests(self) -> int:
        """All requests."""
        return self.step_1 + self.step_2

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "requests": self.requests}


def export_requests(run: Run, path: Path, steps: tuple[int, ...] = BOTH_STEPS, progress: Progress = silent) -> Exported:
    """Write what a run would ask and the generation cache does not hold, a request a line.

    Answers of step 1 without a verdict are judged on the way, because step 2 asks about what is accepted. Where there
    is nothing to ask the file is empty. It appears whole; memory does not grow with it.

    Args:
        run: the run.
        path: the file; one that is there is replaced.
        steps: whose requests are written.
        progress: told how far it is.
    """
    _check_target(path)
    counts: dict[int, int] = {1: 0, 2: 0}
    with looking_for_requests(run, progress) as missing:

        def write(file: BinaryIO) -> None:
            for step, count in _write(missing, file, steps):
                counts[step] += count
                progress(sum(counts.values()), None, phase="writing requests")

        write_atomic(path, write)
        left = missing.unanswered, missing.words, missing.unjudged
        return Exported(str(path), missing.options.model, counts[1], counts[2], *left)


def _write(missing: MissingRequests, file: BinaryIO, steps: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    options = missing.options
    for block in missing.blocks():
        if block.request.step not in steps:
            continue
        for key, prompt in zip(block.keys, missing.prompts(block), strict=True):
            file.write(request_line(key, options.model, prompt, options.sampling, options.openai.extra_body))
        yield block.request.step, len(block.texts)


def _check_target(path: Path) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"{path} cannot be written; name a file in a folder that you may write to")


@dataclass
class Imported:
    """What became of the lines of batch files."""

    lines: int = 0
    new: int = 0
    """Answers that are in the cache now."""
    declined: int = 0
    """Those of them that say that there is no answer: the prompt was too long, or against the rules."""
    short: int = 0
    """Those of them with fewer answers than were asked for."""
    answered: int = 0
    """Lines whose request was answered before."""
    repeated: int = 0
    """Lines whose request an earlier line answers."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Lines of no use, by reason."""
    rejects: list[str] = field(default_factory=list)
    """Files with the rejected lines (`tables.REJECTS`)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend: float | None = None
    """What these tokens cost with the configured prices; None without prices."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def import_answers(run: Run, paths: Sequence[Path], progress: Progress = silent) -> Imported:
    """Put the answers to requests that a run would make into its generation cache.

    They are durable part by part: after a kill the same files are imported again, and nothing comes twice. Lines of no
    use are written beside each file, as `NAME.rejects.parquet`. Memory does not grow with the files.

    Args:
        run: the run.
        paths: batch output or error files.
        progress: told how far it is.
    """
    with (
        # Two at once would both find the same requests missing.
        lock(run.store.cache / "requests-import.lock"),
        looking_for_requests(run, progress) as missing,
        closing(duckdb.connect(":memory:", config=CONFIG)) as con,
    ):
        con.execute("SET temp_directory = $folder", {"folder": str(missing.scratch / "duckdb.tmp")})
        files = {"lines": str(missing.scratch / "lines.parquet"), "wanted": str(missing.scratch / "wanted.parquet")}
        imported = Imported(lines=_write_lines(paths, Path(files["lines"]), draws(missing.options.sampling), progress))
        _write_wanted(missing, Path(files["wanted"]))
        with missing.cache.attached(con):
            con.execute(PLACE, files)
        _keep_new(missing, con, files, imported, progress)
        places = dict(con.execute("SELECT place, count(*) FROM placed GROUP BY place").fetchall())
        imported.answered, imported.repeated = places.get("answered", 0), places.get("repeated", 0)
        _write_rejects(paths, con, files["lines"], imported)
    if imported.rejected and not (imported.new or imported.answered):
        raise _useless(paths, imported)
    return imported


def _write_lines(paths: Sequence[Path], target: Path, n: int, progress: Progress) -> int:
    """Write what the lines say as `LINES`; their number."""
    count, size = 0, 0
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(target, LINES, compression="lz4") as writer:
        for number, path in enumerate(paths):
            try:
                with path.open("rb") as file:
                    for line, raw in enumerate(map(bytes.strip, file), 1):
                        if not raw:
                            continue
                        rows.append({"file": number, "line": line, **_row(raw, n)})
                        count, size = count + 1, size + len(raw)
                        if len(rows) == BATCH_LINES or size > BATCH_BYTES:
                            writer.write_table(pa.Table.from_pylist(rows, schema=LINES))
                            progress(count, None, phase="reading answers")
                            rows, size = [], 0
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
        writer.write_table(pa.Table.from_pylist(rows, schema=LINES))
    return count


def _row(raw: bytes, n: int) -> dict[str, Any]:
    answer = read_line(raw, n)
    shown = raw[: 4 * SHOWN_CHARS].decode("utf-8", "replace")[:SHOWN_CHARS]
    if isinstance(answer, Refused):
        return {"reason": answer.reason, "detail": storable(answer.detail), "raw": shown}
    key, completion = answer
    return {
        "key": key,
        "completions": list(map(storable, completion.texts)),
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "raw": shown,
    }


def _write_wanted(missing: MissingRequests, target: Path) -> None:
    """Write the missing requests as `WANTED`."""
    with pq.ParquetWriter(target, WANTED, compression="lz4") as writer:
        for block in missing.blocks():
            request, count = block.request, len(block.texts)
            columns = {
                "key": block.keys,
                "step": [request.step] * count,
                "attempt": [request.attempt] * count,
                "input": list(map(storable, block.texts)),
                "engine": [missing.paraphraser.engine().name] * count,
                "model": [request.model] * count,
                "prompt": [request.prompt_id] * count,
                "prompt_hash": [request.prompt_hash] * count,
                "sampling": [request.sampling] * count,
                "seed": [request.seed] * count,
                "prompt_tokens": list(map(prompt_size, missing.prompts(block))),
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=WANTED))


def _keep_new(
    missing: MissingRequests,
    con: duckdb.DuckDBPyConnection,
    files: dict[str, str],
    imported: Imported,
    progress: Progress,
) -> None:
    expected = draws(missing.options.sampling)
    for batch in con.sql(NEW, params=files).to_arrow_reader(PART_ROWS):
        table = pa.Table.from_batches([batch]).select(GENERATIONS.names).cast(GENERATIONS)
        missing.cache.append(table)
        counts = [len(texts) for texts in table.column("completions").to_pylist()]
        imported.new += len(counts)
        imported.declined += counts.count(0)
        imported.short += sum(0 < count < expected for count in counts)
        imported.prompt_tokens += sum(table.column("prompt_tokens").to_pylist())
        imported.completion_tokens += sum(table.column("completion_tokens").to_pylist())
        progress(imported.new, None, phase="keeping answers")
    engine = missing.paraphraser.engine()
    if isinstance(engine, PaidEngine) and engine.priced:
        imported.spend = round(engine.cost(imported.prompt_tokens, imported.completion_tokens), 6)


def _write_rejects(paths: Sequence[Path], con: duckdb.DuckDBPyConnection, lines: str, imported: Imported) -> None:
    con.execute("SET VARIABLE unknown = $unknown", {"unknown": UNKNOWN})
    con.execute("SET VARIABLE lines = $lines", {"lines": lines})
    con.execute(REJECTED)
    imported.rejected = dict(
        con.sql("SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY reason").fetchall()
    )
    files = {number for (number,) in con.sql("SELECT DISTINCT file FROM rejected").fetchall()}
    for number, path in enumerate(paths):
        target = path.with_name(f"{path.name}.rejects.parquet")
        try:
            if number in files:
                write_atomic(target, partial(_write_rejects_of, number, path.name, con))
                imported.rejects.append(str(target))
            elif target.exists():
                # Of an earlier import, whose lines are in order now.
                target.unlink()
        except (ArtifactError, OSError) as error:
            raise ArtifactError(
                f"the answers are kept, but the rejected lines cannot be written to {target}: "
                f"{one_line(error.__cause__ or error)}; copy {path.name} to a folder that you may write to and import "
                "it again"
            ) from error


def _write_rejects_of(number: int, source: str, con: duckdb.DuckDBPyConnection, file: BinaryIO) -> None:
    query = "SELECT line, reason, detail, raw FROM rejected WHERE file = $number ORDER BY line"
    with pq.ParquetWriter(file, REJECTS, compression="zstd") as writer:
        for batch in con.sql(query, params={"number": number}).to_arrow_reader(PART_ROWS):
            rejects = [Reject(row["line"], row["reason"], row["detail"], row["raw"]) for row in batch.to_pylist()]
            writer.write_batch(reject_batch(rejects, source))


def _useless(paths: Sequence[Path], imported: Imported) -> InputError:
    reasons = ", ".join(f"{reason} {count}" for reason, count in imported.rejected.items())
    return InputError(
        f"none of the {imported.lines} lines of {', '.join(path.name for path in paths)} answers a request of this "
        f"configuration ({reasons}; see {imported.rejects[0]}); expected what came back for a file of "
        "`paraclip requests export` with the same settings"
    )
