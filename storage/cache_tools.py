"""What a generation cache holds, and what was paid for it.

Everything here raises ArtifactError where the cache cannot be read or written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip.storage.duckdb_file import environment_error
from paraclip.storage.generations import GENERATIONS, PARTS, GenerationStore
from paraclip.storage.parts import IMPORTED, PartFolder
from paraclip_core.errors import ArtifactError

log = logging.getLogger(__name__)

COUNTS = """
    SELECT (SELECT coalesce(sum(rows), 0)::BIGINT FROM cache.generations_parts),
        (SELECT count(*) FROM cache.generations), (SELECT count(*) FROM cache.verdicts)
"""
GROUPS = (
    "SELECT step, model, prompt, count(*) AS rows, count(DISTINCT key) AS keys FROM {parts} GROUP BY ALL ORDER BY ALL"
)


@dataclass(frozen=True)
class CacheStats:
    """What a generation cache holds."""

    rows: int
    """Generations, those that repeat a key included."""
    keys: int
    """Different request keys."""
    segments: int
    """Parts of generations."""
    torn: int
    """Parts that were damaged and set aside, of verdicts included."""
    bytes: int
    """Size of all parts of generations."""
    verdicts: int
    """Verdicts on generations."""
    groups: list[dict[str, Any]]
    """Rows and keys by step, model and prompt."""


def cache_stats(store: GenerationStore) -> CacheStats:
    """Count what is there."""
    # While the cache is attached no part goes.
    with store.tables() as con:
        ((rows, keys, verdicts),) = con.execute(COUNTS).fetchall()
        files = [store.parts.folder / name for name in store.parts.names()]
        values = {"files": [str(file) for file in files]}
        try:
            groups = con.sql(GROUPS.format(parts=PARTS), params=values).to_arrow_table().to_pylist() if files else []
        except duckdb.Error as error:
            raise environment_error(error, store.folder) or ArtifactError(
                f"{store.parts.folder} cannot be read: {error}; delete {store.file.path} and run again: it is made "
                "again from all parts that are sound"
            ) from error
        torn, size = store.parts.torn() + store.verdict_parts.torn(), sum(file.stat().st_size for file in files)
        return CacheStats(rows, keys, len(files), torn, size, verdicts, groups)


# Spending

TOKENS = ("prompt_tokens", "completion_tokens")


def paid_tokens(cache_folder: Path, engine: str, model: str) -> tuple[int, int]:
    """Prompt and completion tokens of all generations of one engine and model that were asked for here.

    What was imported from other caches was paid for elsewhere. A part that cannot be read is passed over. It needs no
    lock.
    """
    folder = PartFolder(cache_folder / "segments", GENERATIONS.schema)
    while True:
        names = folder.names()
        try:
            counts = [_tokens(folder.folder / name, engine, model) for name in names]
        except FileNotFoundError as error:
            # Parts were joined meanwhile: what they held is counted in the one that took their place.
            if folder.names() == names:
                raise ArtifactError(f"cannot read a part of {cache_folder}: {error}; delete it") from error
            continue
        return sum(prompt for prompt, _ in counts), sum(completion for _, completion in counts)


def _tokens(path: Path, engine: str, model: str) -> tuple[int, int]:
    try:
        if IMPORTED.items() <= (pq.read_schema(path).metadata or {}).items():
            return 0, 0
        filters = [("engine", "=", engine), ("model", "=", model)]
        table = pq.read_table(path, columns=["engine", "model", *TOKENS], filters=filters)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        log.warning("%s does not count towards the spending: %s", path, error)
        return 0, 0
    prompt, completion = (pc.call_function("sum", [table.column(name)]).as_py() or 0 for name in TOKENS)
    return prompt, completion
