"""What a generation cache holds, and what was paid for it.

Everything here raises ArtifactError where the cache cannot be read or written.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip.storage.duckdb_file import environment_error
from paraclip.storage.files import read_json, write_json
from paraclip.storage.generations import GENERATIONS, PARTS, GenerationStore
from paraclip.storage.parts import PartFolder, digest_of
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

IMPORTED = "imported.json"
"""Engine → model → part's digest → prompt and completion tokens of the generations that came from other caches."""
TOKENS = ("prompt_tokens", "completion_tokens")
Tokens = tuple[int, int]


def paid_tokens(cache_folder: Path, engine: str, model: str) -> Tokens:
    """Prompt and completion tokens of all generations of one engine and model that were asked for here.

    What was imported from other caches was paid for elsewhere. A part that cannot be read is passed over. It needs no
    lock.
    """
    folder = PartFolder(cache_folder / "segments", GENERATIONS.schema)
    while True:
        # Before the parts: what is imported or joined meanwhile then counts as paid, and the cap comes sooner.
        imported = _imported(cache_folder).get(engine, {}).get(model, {})
        names = folder.names()
        try:
            spent = _total(_tokens(folder.folder / name, engine, model) for name in names)
        except FileNotFoundError as error:
            # Parts were joined meanwhile: what they held is counted in the one that took their place.
            if folder.names() == names:
                raise ArtifactError(f"cannot read a part of {cache_folder}: {error}; delete it") from error
            continue
        elsewhere = _of(imported, set(map(digest_of, names)))
        return max(0, spent[0] - elsewhere[0]), max(0, spent[1] - elsewhere[1])


def _tokens(path: Path, engine: str, model: str) -> Tokens:
    try:
        filters = [("engine", "=", engine), ("model", "=", model)]
        table = pq.read_table(path, columns=["engine", "model", *TOKENS], filters=filters)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        log.warning("%s does not count towards the spending: %s", path, error)
        return 0, 0
    prompt, completion = (pc.call_function("sum", [table.column(name)]).as_py() or 0 for name in TOKENS)
    return prompt, completion


def note_imported(cache_folder: Path, digest: str, rows: pa.Table) -> None:
    """Note that the generations of a part came from another cache. Call it while holding the cache's lock."""
    if not {"engine", "model", *TOKENS}.issubset(rows.column_names):
        # Nobody counts them as paid either.
        return
    imported = _imported(cache_folder)
    sums = rows.group_by(["engine", "model"]).aggregate([(name, "sum") for name in TOKENS])
    for row in sums.to_pylist():
        counts = (row["prompt_tokens_sum"] or 0, row["completion_tokens_sum"] or 0)
        imported.setdefault(row["engine"], {}).setdefault(row["model"], {})[digest] = counts
    write_json(cache_folder / IMPORTED, imported)


def note_joined(cache_folder: Path, present: Iterable[str], old: Iterable[str], new: str) -> None:
    """Note that a part will take the place of others, imported ones perhaps. Call it before, holding the cache's lock.

    Args:
        cache_folder: the cache's folder.
        present: digests of all parts; what is noted of others is forgotten.
        old: digests of those that are joined.
        new: digest of the one that holds their rows.
    """
    imported, remaining, joined = _imported(cache_folder), set(present), set(old)
    if not imported:
        return
    for models in imported.values():
        for model, tokens in models.items():
            models[model] = {digest: counts for digest, counts in tokens.items() if digest in remaining}
            if joined.intersection(tokens):
                models[model][new] = _of(tokens, joined)
    write_json(cache_folder / IMPORTED, imported)


def _imported(cache_folder: Path) -> dict[str, dict[str, dict[str, Tokens]]]:
    path = cache_folder / IMPORTED
    try:
        note = read_json(path) if path.exists() else {}
        return {engine: {model: _by_part(value) for model, value in models.items()} for engine, models in note.items()}
    except (ArtifactError, AttributeError, TypeError, ValueError) as error:
        log.warning("what was imported counts as paid: %s is not as `cache import` writes it (%s)", path, error)
        return {}


def _by_part(value: dict[str, Any]) -> dict[str, Tokens]:
    return {digest: (int(prompt), int(completion)) for digest, (prompt, completion) in value.items()}


def _of(tokens: Mapping[str, Tokens], digests: Collection[str]) -> Tokens:
    return _total(counts for digest, counts in tokens.items() if digest in digests)


def _total(counts: Iterable[Tokens]) -> Tokens:
    pairs = [(0, 0), *counts]
    return sum(prompt for prompt, _ in pairs), sum(completion for _, completion in pairs)
