"""Looking at a whole generation cache: what it holds, which generation is nearest, what is damaged, what was paid.

Everything here raises ArtifactError where the cache cannot be read or written.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip.storage.duckdb_file import environment_error, opened
from paraclip.storage.files import read_json, write_json
from paraclip.storage.generations import GENERATIONS, NAME, PARTS, CacheFile, GenerationStore, table_sql
from paraclip.storage.parts import PartFolder, TornPart, digest_of
from paraclip_core.errors import ArtifactError

log = logging.getLogger(__name__)

# Other writers may leave out what the cache itself does not need.
ALL_COLUMNS = f"""(
    FROM {PARTS} UNION ALL BY NAME SELECT NULL::VARCHAR AS input, NULL::VARCHAR AS engine, NULL::BLOB AS prompt_hash,
        NULL::VARCHAR AS sampling, NULL::BIGINT AS seed WHERE false
)"""
COUNTS = """
    SELECT (SELECT coalesce(sum(rows), 0)::BIGINT FROM cache.generations_parts),
        (SELECT count(*) FROM cache.generations), (SELECT count(*) FROM cache.verdicts)
"""
GROUPS = "SELECT step, model, prompt, count(*), count(DISTINCT key) FROM {parts} GROUP BY ALL ORDER BY ALL"


@dataclass(frozen=True)
class CacheGroup:
    """How many rows and different keys the cache has of one step, model and prompt."""

    step: int
    model: str
    prompt: str
    rows: int
    keys: int


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
    groups: tuple[CacheGroup, ...]
    """Rows and keys by step, model and prompt."""


def cache_stats(store: GenerationStore) -> CacheStats:
    """Count what is there."""
    with store.tables() as con:
        ((rows, keys, verdicts),) = con.execute(COUNTS).fetchall()
        groups = tuple(CacheGroup(*group.values()) for group in _query(con, store, GROUPS))
        names, torn = store.parts.names(), store.parts.torn() + store.verdict_parts.torn()
        size = sum((store.parts.folder / name).stat().st_size for name in names)
        return CacheStats(rows, keys, len(names), torn, size, verdicts, groups)


# Searching

OTHERS = ("model", "prompt", "prompt_hash", "sampling", "seed", "attempt")
UNDER = "FROM {parts} WHERE key = $key ORDER BY filename, file_row_number LIMIT 1"
NEAREST = (
    "FROM {parts} ORDER BY step <> $step, input IS DISTINCT FROM $input, "
    + " + ".join(f"({name} IS DISTINCT FROM ${name})::INTEGER" for name in OTHERS)
    + ", jaro_winkler_similarity(coalesce(input, ''), $input) DESC, filename, file_row_number LIMIT 1"
)


def find_generation(store: GenerationStore, key: bytes) -> dict[str, Any] | None:
    """The generation that counts for a request key, by column; None for what its writer did not keep."""
    return _search(store, UNDER, {"key": key})


def nearest_generation(store: GenerationStore, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The generation whose request differs least from this one.

    The same step comes before everything, the same input before the rest; where no input is the same, the most
    similar one among those whose other parts differ least. None where the cache is empty. It reads every part.

    Args:
        store: the cache.
        request: its parts: `step`, `model`, `prompt`, `prompt_hash`, `sampling`, `seed`, `attempt`, `input`.
    """
    return _search(store, NEAREST, {name: request[name] for name in ("step", "input", *OTHERS)})


def _search(store: GenerationStore, query: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    with store.tables() as con:
        return next(iter(_query(con, store, query, values)), None)


def _query(
    con: duckdb.DuckDBPyConnection, store: GenerationStore, query: str, values: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Rows of a query over all parts of generations. Call it while the cache is attached, so that none goes."""
    files = [str(store.parts.folder / name) for name in store.parts.names()]
    if not files:
        return []
    try:
        rows = con.execute(query.format(parts=ALL_COLUMNS), {**(values or {}), "files": files})
        names = [column[0] for column in rows.description]
        return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
    except duckdb.Error as error:
        raise environment_error(error, store.folder) or ArtifactError(
            f"{store.parts.folder} cannot be read: {error}; `paraclip cache verify` finds what is damaged"
        ) from error


# Verifying

DIGESTS = """
    SELECT p.name, p.rows, coalesce(t.rows, 0), coalesce(t.digest, 0)
    FROM (SELECT name, sum(rows)::BIGINT AS rows FROM cache.{table}_parts GROUP BY name) AS p LEFT JOIN (
        SELECT p.name, count(*) AS rows, bit_xor(hash({plain})) AS digest
        FROM cache.{table} AS t JOIN cache.{table}_parts AS p ON p.id = t.part GROUP BY p.name
    ) AS t USING (name)
"""


@dataclass(frozen=True)
class Verified:
    """What was found in a generation cache."""

    segments: int
    """Sound parts of generations."""
    rows: int
    """Rows of those."""
    verdicts: int
    """Rows of the sound parts of verdicts."""
    torn: tuple[str, ...]
    """Parts that were found damaged now, and set aside."""
    torn_before: int
    """Parts that had been set aside before."""
    mended: tuple[str, ...]
    """Parts whose rows the DuckDB file had otherwise, or not; it is made again."""

    @property
    def sound(self) -> bool:
        """Nothing was wrong."""
        return not self.torn and not self.mended


def verify_cache(store: GenerationStore) -> Verified:
    """Read everything; torn parts are set aside, and where the tables differ from the parts they are made again."""
    if store.mirror is not None:
        store.mirror.pull()
    if not store.exists():
        return Verified(0, 0, 0, (), 0, ())
    with store.locked():
        before = store.parts.torn() + store.verdict_parts.torn()
        rows, torn = _read_all(store.parts)
        verdicts, torn_verdicts = _read_all(store.verdict_parts)
        store.file.catch_up()
        if mended := tuple(sorted(_differing(store))):
            log.warning("the tables differ from %s parts and are made again", len(mended))
            store.file.delete()
            store.file.catch_up()
    return Verified(len(rows), sum(rows), sum(verdicts), (*torn, *torn_verdicts), before, mended)


def _read_all(folder: PartFolder) -> tuple[list[int], list[str]]:
    """Rows of each sound part, and the names of torn ones, which are set aside."""
    rows, torn = [], []
    for name in folder.names():
        try:
            rows.append(folder.read(name).num_rows)
        except TornPart as error:
            folder.set_aside(error)
            torn.append(name)
    return rows, torn


def _differing(store: GenerationStore) -> set[str]:
    """Parts whose rows are not in the tables as they would be if the file were made now."""
    folder = store.folder / "verify"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fresh = CacheFile(folder, store.file.tables)
        fresh.catch_up()
        expected = _digests(fresh)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        actual = _digests(store.file)
    except duckdb.Error as error:
        if failure := environment_error(error, store.file.path):
            raise failure from error
        log.warning("%s is damaged: %s", store.file.path, error)
        actual = {}
    return {name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)}


def _digests(file: CacheFile) -> dict[str, tuple[int, ...]]:
    """How many rows each part has, how many of them count, and a hash over those, by the part's name."""
    with opened(file.path, NAME, read_only=True) as con:
        rows = [row for table, _ in file.tables for row in con.execute(table_sql(DIGESTS, table)).fetchall()]
    return {name: tuple(counts) for name, *counts in rows}


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
                what = f"cannot read {error.filename or folder.folder}: {error.strerror or error}"
                raise ArtifactError(f"{what}; `paraclip cache verify` finds what is damaged") from error
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
