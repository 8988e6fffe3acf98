"""The tables of one block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.paraphrase.block import INPUT_COLUMNS, BlockState, paraphrase_rows
from paraclip_core.paraphrase.choose import Verdict
from paraclip_core.paraphrase.judged import OUTCOMES
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

CAPTIONS = ["a red dog", "a blue cat", "a green boat"]
KEYS = [bytes([number]) * 16 for number in range(3)]
Rows = Callable[[Sequence[str]], pa.RecordBatch]


@pytest.mark.parametrize("kept", [(), (1,), (2, 0), (0, 1, 2)])
def test_rows_that_were_kept_come_in_order_with_their_own_columns(kept: tuple[int, ...], rows_of: Rows) -> None:
    block, state = rows_of(CAPTIONS), BlockState(CAPTIONS, CAPTIONS)
    for row in kept:
        state.kept[row] = Verdict(f"answer {row}", similarity=0.5 if row else None), KEYS[row]
    outcomes = state.outcomes(Tokeniser().encode_batch)
    assert outcomes.schema == OUTCOMES
    found = paraphrase_rows(block, outcomes, 1)
    assert found.schema == PARAPHRASES
    encode = Tokeniser().encode
    expected = [
        {name: block.column(name)[row].as_py() for name in INPUT_COLUMNS[1]}
        | {"paraphrase_1": f"answer {row}", "paraphrase_1_tokens": encode(f"answer {row}"), "generation_1": KEYS[row]}
        | {"similarity_1": 0.5 if row else None}
        | dict.fromkeys(("paraphrase_2", "paraphrase_2_tokens", "similarity_2", "generation_2"))
        for row in sorted(kept)
    ]
    assert found.to_pylist() == expected


def test_rejects_come_by_row_and_attempt(rows_of: Rows) -> None:
    block, state = rows_of(CAPTIONS), BlockState(CAPTIONS, CAPTIONS)
    state.rejects += [
        (row, attempt, Verdict(None, "empty", "no word"), KEYS[row]) for attempt in (1, 0) for row in (2, 0)
    ]
    found = state.reject_rows(block, 2)
    assert found.schema == PARAPHRASE_REJECTS
    assert [(row["input"], row["attempt"], row["step"]) for row in found.to_pylist()] == [
        ("a red dog", 0, 2), ("a red dog", 1, 2), ("a green boat", 0, 2), ("a green boat", 1, 2)
    ]  # fmt: skip
    assert found.column("caption_id")[0] == block.column("caption_id")[0]
