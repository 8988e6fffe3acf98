"""Parquet parts: whole, bounded, and the same bytes however the batches are cut; columns counted in fixed memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraclip.storage.parquet import (
    PartWriter,
    count_rows,
    frequent_values,
    iter_batches,
    parquet_files,
    read_table,
    write_table,
)
from paraclip_core.errors import ArtifactError

SCHEMA = pa.schema([pa.field("n", pa.int64()), pa.field("text", pa.string())])


def rows(start: int, stop: int) -> pa.RecordBatch:
    values = list(range(start, stop))
    return pa.record_batch([pa.array(values, pa.int64()), pa.array([f"row {n}" for n in values])], schema=SCHEMA)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@given(st.lists(st.integers(0, 40), max_size=8))
@settings(max_examples=50, deadline=None)
def test_equal_rows_give_equal_bytes(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    whole = PartWriter(one, SCHEMA, rows=25)
    whole.write(rows(0, sum(cuts)))
    whole.close()
    pieces, start = PartWriter(many, SCHEMA, rows=25), 0
    for cut in cuts:
        pieces.write(rows(start, start + cut))
        start += cut
    pieces.close()
    assert contents(one) == contents(many)
    assert pieces.rows_written == sum(cuts) == count_rows(many)
    assert read_table(many)["n"].to_pylist() == list(range(sum(cuts)))


def test_part_names_and_sizes(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, SCHEMA, stem="x", rows=10)
    writer.write(rows(0, 25))
    assert [path.name for path in parquet_files(tmp_path)] == ["x-00000.parquet", "x-00001.parquet"]
    writer.close()
    assert [count_rows(path) for path in parquet_files(tmp_path)] == [10, 10, 5]
    # A writer without rows leaves the schema.
    PartWriter(tmp_path / "none", SCHEMA).close()
    assert read_table(tmp_path / "none").schema == SCHEMA


def test_batches_of_chosen_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", pa.Table.from_batches([rows(0, 100)]))
    write_table(tmp_path / "b.parquet", pa.Table.from_batches([rows(100, 110)]))
    batches = list(iter_batches(tmp_path, ["n"], batch_rows=64))
    assert [batch.num_rows for batch in batches] == [64, 36, 10]
    assert batches[0].schema.names == ["n"]
    assert read_table(tmp_path / "b.parquet")["n"].to_pylist() == list(range(100, 110))


@pytest.mark.parametrize("keep", [0, 10, -3])
def test_a_damaged_part_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, pa.Table.from_batches([rows(0, 100)]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"a\.parquet cannot be read as Parquet"):
        list(iter_batches(tmp_path))
    with pytest.raises(ArtifactError, match=r"cannot count the values in .*a\.parquet"):
        frequent_values(tmp_path, "n")
    path.unlink()
    with pytest.raises(ArtifactError, match="no Parquet file in"):
        parquet_files(tmp_path)


@pytest.mark.parametrize("count", [0, 10])
def test_a_lost_column_is_named(tmp_path: Path, count: int) -> None:
    write_table(tmp_path / "a.parquet", pa.Table.from_batches([rows(0, count)]))
    for read in (lambda: list(iter_batches(tmp_path, ["n", "weight"])), lambda: read_table(tmp_path, ["weight"])):
        with pytest.raises(ArtifactError, match=r"a\.parquet lacks the column 'weight'"):
            read()


def write_values(path: Path, values: Sequence[str | None]) -> Path:
    write_table(path, pa.table({"license": pa.array(values, pa.string())}))
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(st.sampled_from(["CC-BY", "MIT", "x' OR 1=1 --", '"', "é"]), max_size=40))
def test_few_values_are_all_counted(tmp_path: Path, values: list[str]) -> None:
    assert frequent_values(write_values(tmp_path / "a.parquet", values), "license") == dict(Counter(values))


def test_many_values_are_cut_none_is_lost_and_a_folders_name_is_no_column(tmp_path: Path) -> None:
    values = ["a"] * 5 + ["b"] * 3 + [f"rare-{number:04d}" for number in range(100)] + [None, None]
    folder = tmp_path / "license=MIT"
    folder.mkdir()
    for part, some in enumerate((values[:6], values[6:])):
        write_values(folder / f"part-0000{part}.parquet", some)
    counts = frequent_values(folder, "license", limit=4)
    assert counts == {"unknown": 2, "a": 5, "b": 3, "rare-0000": 1, "99 others": 99}
    assert sum(counts.values()) == len(values)
