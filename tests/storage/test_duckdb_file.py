"""One DuckDB a process, in which files are opened for a moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest

from storage import duckdb_file
from storage.duckdb_file import attached

ROWS = "SELECT * FROM t ORDER BY ALL"


def made(path: Path, *values: int) -> Path:
    with attached(path, False) as con:
        con.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
        for value in values:
            con.execute("INSERT INTO t VALUES (?)", [value])
    return path


def values_of(path: Path) -> list[int]:
    with attached(path, True) as con:
        return [value for (value,) in con.execute(ROWS).fetchall()]


def test_one_duckdb_is_made_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]
    connect = duckdb.connect

    def counted(*given: object, **options: object) -> duckdb.DuckDBPyConnection:
        count[0] += 1
        return connect(*given, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(duckdb, "connect", counted)
    path = made(tmp_path / "it's one.duckdb", 1)
    assert [values_of(path), values_of(made(path, 2))] == [[1], [1, 2]]
    assert count == [1]
    with attached(path, False) as con:
        assert con.execute("SELECT current_setting('temp_directory')").fetchall() == [(f"{path}.tmp",)]
    made(tmp_path / "two.duckdb")
    assert count == [2]


def test_the_file_is_whole_and_free_between(tmp_path: Path) -> None:
    path = made(tmp_path / "one.duckdb", 1, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["one.duckdb"]
    code = f"import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(c.execute({ROWS!r}).fetchall())"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(1,), (2,)]"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, duckdb.FatalException])
def test_what_fails_is_rolled_back_and_the_next_one_works(tmp_path: Path, kind: type[BaseException]) -> None:
    path = made(tmp_path / "one.duckdb", 1)
    with pytest.raises(kind, match="on the way"), attached(path, False) as con:
        con.execute("BEGIN")
        con.execute("INSERT INTO t VALUES (2)")
        raise kind("on the way")
    assert values_of(made(path, 3)) == [1, 3]


def test_what_cannot_be_closed_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "one.duckdb", 1)

    def stuck(*_: object) -> None:
        raise duckdb.InternalException("stuck")

    with monkeypatch.context() as broken:
        broken.setattr(duckdb_file, "_detach", stuck)
        with pytest.raises(RuntimeError, match="on the way"), attached(path, False):
            raise RuntimeError("on the way")
    assert values_of(path) == [1]


def test_a_file_that_is_none_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    (tmp_path / "bad.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(duckdb.Error, match="not a valid DuckDB database"), attached(tmp_path / "bad.duckdb", False):
        pass
    assert values_of(made(tmp_path / "one.duckdb", 1)) == [1]


def test_threads_have_files_of_their_own(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for value in range(10):
            made(tmp_path / f"{number}.duckdb", value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [values_of(tmp_path / f"{number}.duckdb") for number in range(4)] == [list(range(10))] * 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_makes_its_own(tmp_path: Path) -> None:
    path = made(tmp_path / "one.duckdb", 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if values_of(path) == [1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
