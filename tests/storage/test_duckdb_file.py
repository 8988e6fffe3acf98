"""DuckDB files are attached for a moment, and free between."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest

from storage.duckdb_file import attached, opened

ROWS = "SELECT * FROM f.t ORDER BY ALL"


def append(path: Path, *values: int) -> Path:
    with opened(path, "f") as con:
        con.execute("CREATE TABLE IF NOT EXISTS f.t (n INTEGER)")
        for value in values:
            con.execute("INSERT INTO f.t VALUES (?)", [value])
    return path


def values_of(path: Path) -> list[int]:
    with opened(path, "f", read_only=True) as con:
        return [value for (value,) in con.execute(ROWS).fetchall()]


def test_what_is_spilled_lies_beside_the_file(tmp_path: Path) -> None:
    path = append(tmp_path / "it's one.duckdb", 1)
    assert [values_of(path), values_of(append(path, 2))] == [[1], [1, 2]]
    with opened(path, "f") as con:
        assert con.execute("SELECT current_setting('temp_directory')").fetchall() == [(f"{path}.tmp",)]


def test_the_file_is_whole_and_free_between(tmp_path: Path) -> None:
    path = append(tmp_path / "one.duckdb", 1, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["one.duckdb"]
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(c.execute('FROM t').fetchall())"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(1,), (2,)]"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, duckdb.FatalException])
def test_what_fails_is_rolled_back_and_the_next_one_works(tmp_path: Path, kind: type[BaseException]) -> None:
    path = append(tmp_path / "one.duckdb", 1)
    with pytest.raises(kind, match="on the way"), opened(path, "f") as con:
        con.execute("BEGIN")
        con.execute("INSERT INTO f.t VALUES (2)")
        raise kind("on the way")
    assert values_of(append(path, 3)) == [1, 3]


def test_a_file_that_is_none_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    (tmp_path / "bad.duckdb").write_bytes(b"not a database" * 1000)
    path = append(tmp_path / "one.duckdb", 1)
    with duckdb.connect() as con:
        with (
            pytest.raises(duckdb.Error, match="not a valid DuckDB database"),
            attached(con, tmp_path / "bad.duckdb", "f"),
        ):
            pass
        with attached(con, path, "f", read_only=True):
            assert con.execute(ROWS).fetchall() == [(1,)]


def test_threads_have_files_of_their_own(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for value in range(10):
            append(tmp_path / f"{number}.duckdb", value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [values_of(tmp_path / f"{number}.duckdb") for number in range(4)] == [list(range(10))] * 4
