"""The values of a column are counted within fixed memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraclip.storage.parquet import frequent_values, write_table
from paraclip_core.errors import ArtifactError

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
