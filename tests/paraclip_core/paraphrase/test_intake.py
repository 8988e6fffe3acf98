"""Shares of the captions, and blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.intake import blocks, count_wanted, in_fraction, wanted


@given(st.text(max_size=30), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_fraction_holds_the_smaller_one(text: str, one: float, two: float) -> None:
    small, large = sorted((one, two))
    assert in_fraction(text, small) <= in_fraction(text, large)
    assert in_fraction(text, 1.0)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 20))
def test_blocks_have_their_size_however_the_rows_come(sizes: list[int], rows: int) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        at = 0
        for size in sizes:
            yield pa.RecordBatch.from_pydict({"x": pa.array(range(at, at + size), pa.int64())})
            at += size

    found = list(blocks(batches(), rows))
    assert [value for block in found for value in block.column("x").to_pylist()] == list(range(sum(sizes)))
    assert all(block.num_rows == rows for block in found[:-1])


def test_the_share_of_a_batch_is_chosen_by_its_captions() -> None:
    captions = [f"a dog number {number}" for number in range(100)]
    batch = pa.RecordBatch.from_pydict({"caption": captions, "x": list(range(100))})
    chosen = [number for number, text in enumerate(captions) if in_fraction(text, 0.3)]
    found = [
        row
        for part in wanted([batch.slice(0, 40), batch.slice(40), batch.slice(100)], 0.3)
        for row in part["x"].to_pylist()
    ]
    assert found == chosen
    assert 15 < count_wanted([batch], 0.3) == len(chosen) < 45
    assert list(wanted([batch], 1.0)) == [batch]
