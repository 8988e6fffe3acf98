"""What is counted before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import FileEngineOptions, GateOptions, ParaphraseOptions
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.engines.file import FileEngine
from paraclip_core.paraphrase.estimate import Asked, Judged, missing_requests
from paraclip_core.paraphrase.generate import Paraphraser

PAPER = ParaphraseOptions(
    engine="file", gates=GateOptions(preset="paper"), file=FileEngineOptions(path="mine.csv"), synonyms=False
)
TOKENS = Tokeniser().encode_batch


class Refusing:
    """A sentence encoder that nobody may use."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        pytest.fail(f"judged {texts}")


def test_shares_and_sums() -> None:
    assert Asked(3, 10, 100).share(0.5) + Asked(1, 1, 1) == Asked(3, 6, 51)
    assert Asked(2, 10, 20).tokens(2, 0.5) == Asked(2, 20, 10)
    assert Asked(2, 10, 20).tokens(0, 0) == Asked(2, 10, 20), "what nobody told changes nothing"


def test_known_answers_of_step_2_are_judged_only_where_a_request_may_follow(
    written_paraphrases: Path, cache: Any, rows_of: Callable[[Sequence[str]], pa.RecordBatch]
) -> None:
    engine, captions = (
        FileEngine(written_paraphrases),
        rows_of([f"photo {n} of a red dog on the beach" for n in (0, 12)]),
    )
    step_1 = [
        rows.select(list(INPUT_COLUMNS[2]))
        for rows, _ in Paraphraser(1, PAPER, engine, cache, Chooser(PAPER.gates, 1), TOKENS).run([captions])
    ]
    for _ in Paraphraser(2, PAPER, engine, cache, Chooser(PAPER.gates, 2), TOKENS).run(step_1):
        pass

    def look(attempts: int) -> Any:
        options = PAPER.model_copy(update={"gates": GateOptions(preset="small-model"), "attempts": attempts})
        return missing_requests(
            [captions],
            options,
            engine,
            cache,
            lambda step: Chooser(options.gates, step, encoder=Refusing()),
            TOKENS,
            step_1_rows=step_1,
        )

    found = look(1)
    assert (found.total, found.rows_1, found.rows_2) == (0, Judged(2, 0), Judged(0, 2))
    with pytest.raises(pytest.fail.Exception, match="judged"):
        look(2)
