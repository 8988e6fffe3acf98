"""Finding one generation by what was asked: reads the segments themselves, which hold more than the index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from paraclip_core.errors import ArtifactError
from storage.duckdb_file import CONFIG
from storage.generations import GenerationStore

__all__ = ["Kept", "kept_under", "nearest"]

COLUMNS = pa.schema(
    [
        pa.field("key", pa.binary(16)),
        pa.field("step", pa.int8()),
        pa.field("model", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("prompt_hash", pa.binary(16)),
        pa.field("sampling", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("attempt", pa.int16()),
        pa.field("input", pa.string()),
        pa.field("completions", pa.list_(pa.string())),
    ]
)
OTHERS = ("model", "prompt", "prompt_hash", "sampling", "seed", "attempt")


@dataclass(frozen=True)
class Kept:
    """A generation with the request that asked for it; None where its writer did not keep that part."""

    key: bytes
    step: int
    model: str
    prompt: str
    prompt_hash: bytes | None
    sampling: str | None
    seed: int | None
    attempt: int
    input: str | None
    completions: list[str]


def kept_under(store: GenerationStore, key: bytes) -> Kept | None:
    """The generation that counts for a request key.

    Raises:
        ArtifactError: the cache cannot be read.
    """
    return _first(store, "WHERE key = $key ORDER BY filename, file_row_number", {"key": key})


def nearest(store: GenerationStore, asked: Mapping[str, Any]) -> Kept | None:
    """The generation whose request differs least from the one asked for.

    The same step comes before everything, the same input before the rest; where no input is the same, the most
    similar one among those whose other parts differ least. None where the cache is empty. It reads every segment.

    Args:
        store: the cache.
        asked: the parts of a request: `step`, `model`, `prompt`, `prompt_hash`, `sampling`, `seed`, `attempt`, `input`.

    Raises:
        ArtifactError: the cache cannot be read.
    """
    values = {name: asked[name] for name in ("step", "input", *OTHERS)}
    differing = " + ".join(f"({name} IS DISTINCT FROM ${name})::INTEGER" for name in OTHERS)
    order = (
        f"ORDER BY step <> $step, input IS DISTINCT FROM $input, {differing}, "
        "jaro_winkler_similarity(coalesce(input, ''), $input) DESC, filename, file_row_number"
    )
    return _first(store, order, values)


def _first(store: GenerationStore, which: str, values: Mapping[str, Any]) -> Kept | None:
    # Torn segments are set aside here, so that what is left can be read.
    store.refresh()
    while names := store.segments.names():
        try:
            found = _queried([str(store.segments.folder / name) for name in names], which, values)
        except duckdb.Error as error:
            if store.segments.names() != names:
                # Segments were joined meanwhile: what they held is in the one that took their place.
                continue
            raise ArtifactError(
                f"{store.segments.folder} cannot be read: {error}; `paraclip cache verify` finds what is damaged"
            ) from error
        return None if found is None else Kept(*found)
    return None


def _queried(files: Sequence[str], which: str, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    names = ", ".join(COLUMNS.names)
    # A folder above the cache may be called `seed=1` and is no column.
    with duckdb.connect(":memory:", config=CONFIG) as con:
        con.register("plain", COLUMNS.empty_table())
        return con.execute(
            f"SELECT {names} FROM (SELECT * FROM read_parquet($files, union_by_name = true, filename = true, "  # noqa: S608 (our own names)
            f"file_row_number = true, hive_partitioning = false) UNION ALL BY NAME FROM plain) {which} LIMIT 1",
            {**values, "files": files},
        ).fetchone()
