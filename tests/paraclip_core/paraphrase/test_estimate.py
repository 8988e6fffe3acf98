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
from paraclip_core.paraphrase.estimate import Asked, Judged, asks_words, further_words, missing_requests
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


def test_further_words_are_those_that_were_counted_on_scenes_and_photographs() -> None:
    # Texts, content words of the captions, and what the embedded model was asked for beyond these at both steps.
    for texts, words, at_1, at_2 in ((840, 42, 147, 281), (61, 188, 114, 32)):
        asked = texts if words < texts else 33  # half of the photographs' captions came to step 2
        assert further_words(1, words, texts, 0) == pytest.approx(at_1, rel=0.05)
        assert further_words(2, words, asked, 0) == pytest.approx(at_2, rel=0.05)
    assert further_words(2, 0, 10, 1000) < further_words(2, 0, 10, 0), "known answers have brought their words"
    assert further_words(1, 0, 0, 7) == further_words(2, 0, 0, 7) == 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"synonyms": False}, False),
        ({"prompts": "paper"}, False),
        ({"gates": GateOptions(preset="paper")}, False),
        ({"engine": "file"}, False),
    ],
)
def test_when_words_are_asked_for(changed: dict[str, Any], expected: bool) -> None:
    assert asks_words(ParaphraseOptions(engine="smollm2").model_copy(update=changed)) == expected


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
