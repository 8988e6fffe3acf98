"""A generation cache as the release before `generations.duckdb` had layout 6 left it, for what sees it migrated."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb

__all__ = ["FORMER_INDEX", "former_cache"]

LAYOUT = 5
FORMER_INDEX = "generations.index"
"""Folder beside the DuckDB file that layout 6 has no more."""


def former_cache(folder: Path, parts: list[Path], files: int = 4) -> None:
    """Make a cache of layout 5 in `folder` from parts of answers; `files` of its index are to be deleted."""
    (folder / "segments").mkdir(parents=True)
    for part in parts:
        shutil.copy(part, folder / "segments")
    for name in (FORMER_INDEX, "judged"):
        (folder / name).mkdir()
        for number in range(files):
            (folder / name / f"run-{number}.keys").write_bytes(bytes(64))
    with duckdb.connect(folder / "generations.duckdb") as con:
        con.execute("CREATE TABLE schema_migrations (version INTEGER, name VARCHAR)")
        con.executemany("INSERT INTO schema_migrations VALUES (?, ?)", [(n + 1, "") for n in range(LAYOUT)])
        con.execute("CREATE TABLE segments (id INTEGER, name VARCHAR, rows BIGINT, place BIGINT)")
        con.execute("CREATE TABLE generations (key UHUGEINT, segment INTEGER, group_id INTEGER, place BIGINT)")
