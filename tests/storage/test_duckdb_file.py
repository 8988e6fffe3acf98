"""DuckDB files are attached for a moment, and free between; the values of a column are counted within fixed memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraclip.storage.duckdb_file import attached, frequent_values, opened
from paraclip.storage.parquet import write_table
from paraclip_core.errors import ArtifactError

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


# Counting


def write(path: Path, values: Sequence[str | None]) -> Path:
    write_table(path, pa.table({"licence": pa.array(values, pa.string())}))
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(st.sampled_from(["CC-BY", "MIT", "x' OR 1=1 --", '"', "é"]), max_size=40))
def test_few_values_are_all_counted(tmp_path: Path, values: list[str]) -> None:
    assert frequent_values(write(tmp_path / "a.parquet", values), "licence") == dict(Counter(values))


def test_many_values_are_cut_and_none_is_lost(tmp_path: Path) -> None:
    values = ["a"] * 5 + ["b"] * 3 + [f"rare-{number:04d}" for number in range(100)] + [None, None]
    found = frequent_values(write(tmp_path / "a.parquet", values), "licence", limit=4)
    assert found == {"unknown": 2, "a": 5, "b": 3, "rare-0000": 1, "99 others": 99}
    assert sum(found.values()) == len(values)


def test_a_folder_is_counted_as_one(tmp_path: Path) -> None:
    write(tmp_path / "part-00000.parquet", ["a"])
    write(tmp_path / "part-00001.parquet", ["a", "b"])
    assert frequent_values(tmp_path, "licence") == {"a": 2, "b": 1}


def test_a_folder_s_name_is_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "licence=MIT"
    folder.mkdir()
    write(folder / "part-00000.parquet", ["a", "b"])
    assert frequent_values(folder, "licence") == {"a": 1, "b": 1}


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no Parquet file"):
        frequent_values(tmp_path, "licence")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 not Parquet PAR1")
    with pytest.raises(ArtifactError, match=r"cannot count the values in .*part-00000\.parquet"):
        frequent_values(tmp_path, "licence")
