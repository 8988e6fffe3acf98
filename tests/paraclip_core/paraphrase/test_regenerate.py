"""Asking again for just those rows that a condition names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import GateOptions, ParaphraseOptions, RegenerateOptions, SamplingOptions
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.estimate import missing_requests
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.protocol import Completion, Prompt
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

OPTIONS = ParaphraseOptions(engine="transformers", synonyms=False, gates=GateOptions(preset="paper"))
TOKENS = Tokeniser().encode_batch
CAPTIONS = [f"photo {number} of a {('red', 'blue')[number % 2]} dog" for number in range(10)]
BLUE = CAPTIONS[1::2]
Rows = Callable[[Sequence[str]], pa.RecordBatch]


class Drawing:
    """An engine that names its draw, and has no answer where `fails` says so."""

    name = model = "drawing"

    def __init__(self, fails: Callable[[str, int], bool] = lambda text, draw: False) -> None:
        self.fails = fails
        self.asked: list[tuple[str, int]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        draws = [prompt.seed // 7919 for prompt in prompts]
        self.asked += [(prompt.text, draw) for prompt, draw in zip(prompts, draws, strict=True)]
        texts = [
            "" if self.fails(p.text, draw) else f"{p.text} draw {draw}" for p, draw in zip(prompts, draws, strict=True)
        ]
        return [Completion((text,), 3, 4) for text in texts]

    def close(self) -> None:
        pass


def asked_again(**entry: str) -> RegenerateOptions:
    return RegenerateOptions(**entry)


def run(
    engine: Drawing, cache: Any, batches: Sequence[pa.RecordBatch], *again: RegenerateOptions, **changed: Any
) -> tuple[pa.Table, pa.Table]:
    options = OPTIONS.model_copy(update={"regenerate": again, **changed})
    found = list(Paraphraser(1, options, engine, cache, Chooser(options.gates, 1), TOKENS).run(batches))
    return (
        pa.Table.from_batches([rows for rows, _ in found], PARAPHRASES),
        pa.Table.from_batches([refused for _, refused in found], PARAPHRASE_REJECTS),
    )


def answers(rows: pa.Table) -> dict[str, str]:
    return dict(zip(rows.column("caption").to_pylist(), rows.column("paraphrase_1").to_pylist(), strict=True))


def attempts(rejects: pa.Table) -> list[tuple[str, int]]:
    return [(row["input"], row["attempt"]) for row in rejects.to_pylist()]


def test_only_the_rows_of_a_reason_are_asked_again(cache: Any, rows_of: Rows) -> None:
    engine = Drawing(lambda text, draw: "blue" in text and draw == 0)
    before, refused = run(engine, cache, [rows_of(CAPTIONS)])
    assert attempts(refused) == [(text, 0) for text in BLUE]
    engine.asked.clear()
    after, refused = run(engine, cache, [rows_of(CAPTIONS)], asked_again(reason="empty"))
    assert engine.asked == [(text, 1) for text in BLUE]
    assert answers(after) == answers(before) | {text: f"{text} draw 1" for text in BLUE}
    assert after.column("caption").to_pylist() == CAPTIONS
    # What was rejected before is still told.
    assert attempts(refused) == [(text, 0) for text in BLUE]
    engine.asked.clear()
    run(engine, cache, [rows_of(CAPTIONS)], asked_again(reason="echo"))
    assert engine.asked == []


def test_the_same_configuration_gives_the_same_bytes_and_asks_nothing(cache: Any, rows_of: Rows) -> None:
    chosen = asked_again(where="caption like '%3%' or reason = 'empty'")
    engine = Drawing(lambda text, draw: "blue" in text and draw == 0)
    expected = run(engine, cache, [rows_of(CAPTIONS)], chosen)
    asked = len(engine.asked)
    whole = rows_of(CAPTIONS)
    again = run(engine, cache, [whole.slice(0, 3), whole.slice(3)], chosen)
    assert again == expected
    assert len(engine.asked) == asked
    assert run(Drawing(engine.fails), type(cache)(), [whole], chosen) == expected


def test_an_accepted_answer_is_replaced_by_the_new_one(cache: Any, rows_of: Rows) -> None:
    engine = Drawing()
    before, _ = run(engine, cache, [rows_of(CAPTIONS)])
    after, refused = run(engine, cache, [rows_of(CAPTIONS)], asked_again(where="answer like 'photo 4 %'"))
    assert answers(after) == answers(before) | {CAPTIONS[4]: f"{CAPTIONS[4]} draw 1"}
    keys = [table.column("generation_1").to_pylist() for table in (before, after)]
    assert [n for n in range(10) if keys[0][n] != keys[1][n]] == [4]
    assert keys[1][4] in cache.rows
    assert refused.num_rows == 0


def test_an_accepted_answer_stays_where_the_new_one_fails(cache: Any, rows_of: Rows) -> None:
    engine = Drawing(lambda text, draw: draw == 1)
    # It is no empty answer, so the second entry asks for nothing.
    again = asked_again(where="accepted"), asked_again(reason="empty")
    rows, refused = run(engine, cache, [rows_of(CAPTIONS[:3])], *again)
    assert engine.asked == [(text, draw) for draw in (0, 1) for text in CAPTIONS[:3]]
    assert answers(rows) == {text: f"{text} draw 0" for text in CAPTIONS[:3]}
    assert attempts(refused) == [(text, 1) for text in CAPTIONS[:3]]


def test_each_entry_gives_one_more_attempt(cache: Any, rows_of: Rows) -> None:
    engine = Drawing(lambda text, draw: draw < 2)
    again = asked_again(reason="empty")
    rows, _ = run(engine, cache, [rows_of(CAPTIONS[:2])], again)
    assert rows.num_rows == 0
    rows, refused = run(engine, cache, [rows_of(CAPTIONS[:2])], again, again, again)
    assert answers(rows) == {text: f"{text} draw 2" for text in CAPTIONS[:2]}
    assert attempts(refused) == [(text, draw) for text in CAPTIONS[:2] for draw in (0, 1)]
    assert engine.asked == [(text, draw) for draw in (0, 1, 2) for text in CAPTIONS[:2]]


def test_every_row_goes_on_from_its_own_last_attempt(cache: Any, rows_of: Rows) -> None:
    engine = Drawing(lambda text, draw: "blue" in text and draw == 0)
    rows, _ = run(engine, cache, [rows_of(CAPTIONS)], asked_again(where="true"), attempts=2)
    assert answers(rows) == {text: f"{text} draw {2 if text in BLUE else 1}" for text in CAPTIONS}


def test_the_columns_say_what_happened(cache: Any, rows_of: Rows) -> None:
    engine = Drawing(lambda text, draw: "blue" in text)
    told = (
        "step = 1 and attempt = 1 and not accepted and reason = 'empty' and detail <> '' and input = caption and "
        "answer = '' and similarity is null and image_id = 'image3' and licence = 'CC0'"
    )
    run(engine, cache, [rows_of(CAPTIONS)], asked_again(where=told), attempts=2)
    assert [asked for asked in engine.asked if asked[1] == 2] == [(CAPTIONS[3], 2)]


@pytest.mark.parametrize("entry", [{"reason": "empty"}, {"where": "caption like '%red%'"}, {"where": "false"}])
def test_the_plan_counts_what_will_be_asked(entry: dict[str, str], cache: Any, rows_of: Rows) -> None:
    engine = Drawing(lambda text, draw: "blue" in text and draw == 0)
    run(engine, cache, [rows_of(CAPTIONS)])
    options = OPTIONS.model_copy(update={"regenerate": (asked_again(**entry),)})
    planned = missing_requests(
        [rows_of(CAPTIONS)], options, engine, cache, lambda step: Chooser(options.gates, step), TOKENS
    )
    engine.asked.clear()
    run(engine, cache, [rows_of(CAPTIONS)], *options.regenerate)
    assert planned.step_1 == len(engine.asked) == (0 if entry == {"where": "false"} else 5)
