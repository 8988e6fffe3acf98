"""The table of the worst query pairs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from paraclip.storage.parquet import write_table
from paraclip.tasks.results import worst_pairs


def table(values: list[float]) -> pa.Table:
    return pa.table(
        {
            "caption": [f"caption {value}" for value in values],
            "rewording": ["| <b>x</b> |"] * len(values),
            "base_ao": [0.5] * len(values),
            "tuned_ao": values,
            "tuned_caption_top": [["a", "b"]] * len(values),
            "tuned_rewording_top": [["b", "c"]] * len(values),
        }
    )


def test_the_lowest_overlap_comes_first_over_all_benchmarks(tmp_path: Path) -> None:
    write_table(tmp_path / "per_query" / "one.parquet", table([0.9, 0.2, 0.4]))
    write_table(tmp_path / "per_query" / "two.parquet", table([0.3, 0.2]))
    rows = worst_pairs(tmp_path, count=3)
    assert [(row["benchmark"], row["tuned ao@10"]) for row in rows] == [("one", 20.0), ("two", 20.0), ("two", 30.0)]
    assert rows[0]["images for the caption"] == "a, b" and rows[0]["base ao@10"] == 50.0


def test_without_paraphrased_retrieval_there_are_none(tmp_path: Path) -> None:
    assert worst_pairs(tmp_path) == []
