"""The database that is kept for the next Prefect server."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import server_database
from flows.server_database import NAME, seed_database


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the database is kept."""
    monkeypatch.delenv("PARACLIP_LOCAL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return server_database._kept()


def database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("CREATE TABLE flow (id INTEGER)")
        made.commit()
    return path


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as made:
        return [name for (name,) in made.execute("SELECT name FROM sqlite_master ORDER BY name")]


def test_a_new_home_gets_a_copy(tmp_path: Path, kept: Path) -> None:
    database(kept)
    assert seed_database(tmp_path / "home")
    assert tables(tmp_path / "home" / NAME) == ["flow"]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_home_that_has_one_keeps_it(tmp_path: Path, kept: Path) -> None:
    database(kept)
    (tmp_path / NAME).write_bytes(b"its own")
    assert seed_database(tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"its own"


@pytest.mark.parametrize("damage", ["absent", "cut", "overwritten", "no folder at all"])
def test_without_a_sound_copy_the_server_makes_its_own(
    tmp_path: Path, kept: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    if damage != "absent":
        whole = database(kept).read_bytes()
        kept.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"x" * len(whole))
    if damage == "no folder at all":
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
        (tmp_path / "file").touch()
    assert not seed_database(home)
    assert not (home / NAME).exists()


@pytest.mark.slow
def test_the_first_server_leaves_what_prefect_itself_would_make(tmp_path: Path, kept: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys, pathlib, flows.server_database as d; d.ensure_database(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    subprocess.run([sys.executable, "-c", code, str(home)], env=environment, check=True)
    assert {"flow_run", "deployment", "alembic_version"} <= {*tables(kept)}
    assert tables(kept) == tables(home / NAME)
    second = tmp_path / "second"
    subprocess.run([sys.executable, "-c", code, str(second)], env=environment | {"PATH": ""}, check=True)
    assert (second / NAME).read_bytes() == kept.read_bytes()
