"""Keys as numbers, and groups of rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from storage.key_columns import as_numbers, coded, groups_of, key_bytes, with_halves
from storage.segments import INDEXED

KEYS = st.lists(st.binary(min_size=16, max_size=16), max_size=6)


@given(KEYS, st.integers(0, 6))
def test_a_key_is_two_big_endian_numbers(keys: list[bytes], skipped: int) -> None:
    table = pa.table({"key": pa.array(keys, pa.binary(16)).slice(skipped)})
    found = with_halves(table)
    wanted = [(int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")) for key in keys[skipped:]]
    assert list(zip(found["hi"].to_pylist(), found["lo"].to_pylist(), strict=True)) == wanted
    raw = key_bytes(table["key"])
    assert raw.shape == (len(wanted), 2) and raw.tobytes() == b"".join(keys[skipped:])
    assert as_numbers(raw[:, 1]).tolist() == [lo for _, lo in wanted]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("mn"), st.sampled_from("pqr")), max_size=12),
    st.integers(0, 12),
)
def test_rows_of_one_step_model_and_prompt_are_a_group(rows: list[tuple[int, str, str]], cut: int) -> None:
    def table(part: list[tuple[int, str, str]]) -> pa.Table:
        columns = {
            "key": [bytes(16)] * len(part),
            "step": [step for step, _, _ in part],
            "attempt": [0] * len(part),
            "model": [model for _, model, _ in part],
            "prompt": [prompt for _, _, prompt in part],
            "completions": [[] for _ in part],
        }
        return pa.table(columns, schema=INDEXED)

    # Parts have dictionaries of their own.
    codes, groups = groups_of(pa.concat_tables([coded(table(rows[:cut])), coded(table(rows[cut:]))]))
    assert codes.dtype.kind == "i"
    assert [groups[code] for code in codes] == rows
    assert len(groups) == len(set(rows))
    assert np.array_equal(np.unique(codes), np.arange(len(groups)))
