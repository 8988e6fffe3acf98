"""The tables of a step: what of its requests has no answer, what of its answers no verdict, and what was accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.requests import Batches, RequestKeys, step_requests
from paraclip_core.paraphrase.step_tables import NO_PARENT, StepTables
from paraclip_core.tables import ANSWERS, GENERATIONS, VERDICTS
from storage.generations import GenerationStore

OPTIONS = ParaphraseOptions(engine="transformers")
FIRST, SECOND = (step_requests(OPTIONS, 1, "m", attempt) for attempt in range(2))
GATES, OTHER_GATES = b"g" * 16, b"o" * 16
TEXTS = ["a dog", "a cat", "a dog", "a cow", "a pig", "a cat"]
Rows = Callable[[Sequence[str]], pa.RecordBatch]
Reading = Callable[[Sequence[pa.RecordBatch]], Batches]


def answer(cache: GenerationStore, request: RequestKeys, *texts: str) -> None:
    """Keep an answer to each text."""
    same = {"step": request.step, "attempt": request.attempt, "engine": "e", "model": "m", "prompt": "p"}
    same |= {"prompt_hash": bytes(16), "sampling": "{}", "seed": 0, "prompt_tokens": 1, "completion_tokens": 1}
    rows = [same | {"key": request.key(text), "input": text, "completions": [f"well {text}"]} for text in texts]
    cache.append(pa.Table.from_pylist(rows, schema=GENERATIONS))


def judge(
    cache: GenerationStore,
    request: RequestKeys,
    passed: Sequence[str] = (),
    failed: Sequence[str] = (),
    gates: bytes = GATES,
    parent: bytes = NO_PARENT,
) -> None:
    """Keep a verdict on the answer to each text."""
    rows = [
        {
            "generation": request.key(text),
            "parent": parent,
            "gates": gates,
            "accepted": [{"answer": "x", "tokens": [1], "similarity": None}] if text in passed else [],
            "reason": None if text in passed else "echo",
        }
        for text in (*passed, *failed)
    ]
    cache.append_verdicts(pa.Table.from_pylist(rows, schema=VERDICTS))


@pytest.fixture
def tables(cache: GenerationStore, rows_of: Rows, reading: Reading, tmp_path: Path) -> Iterator[StepTables]:
    """Step 1 of six captions, four of them different, in two batches."""
    rows = rows_of(TEXTS)
    with closing(StepTables(1, cache, reading([rows.slice(0, 4), rows.slice(4)]), GATES, tmp_path / "scratch")) as made:
        yield made


def unjudged(tables: StepTables, block_rows: int = 512) -> list[pa.RecordBatch]:
    return list(tables.unjudged(block_rows))


def test_what_has_no_answer_is_missing_once_for_each_text(tables: StepTables, cache: GenerationStore) -> None:
    tables.ask(FIRST)
    assert (tables.rows, tables.requests(0), tables.requests(1)) == (6, 4, 0)
    assert tables.missing(0).tolist() == [0, 1, 3, 4]
    answer(cache, FIRST, "a cat", "a horse")
    assert tables.missing(0).tolist() == [0, 3, 4]
    # Another attempt, model or prompt is another request.
    answer(cache, SECOND, "a dog")
    answer(cache, step_requests(OPTIONS, 1, "other"), "a dog")
    assert tables.missing(0).tolist() == [0, 3, 4]
    answer(cache, FIRST, "a dog", "a cow", "a pig")
    missing = tables.missing(0)
    assert (missing.dtype, len(missing)) == (np.int64, 0)


def test_a_further_attempt_is_asked_for_some_rows(tables: StepTables) -> None:
    tables.ask(FIRST)
    tables.ask(SECOND, np.array([1, 3, 5]))
    assert (tables.rows, tables.requests(0), tables.requests(1)) == (6, 4, 2)
    assert tables.missing(1).tolist() == [1, 3]


def test_answers_are_unjudged_until_there_is_a_verdict_of_the_same_gates(
    tables: StepTables, cache: GenerationStore
) -> None:
    tables.ask(FIRST)
    assert tables.find_unjudged(0) == 0 and unjudged(tables) == []
    answer(cache, FIRST, "a dog", "a pig", "a cat")
    judge(cache, FIRST, ["a pig"], gates=OTHER_GATES)
    judge(cache, FIRST, ["a cat"])
    assert tables.find_unjudged(0) == 2
    (block,) = unjudged(tables)
    assert block.schema == ANSWERS
    assert block.to_pylist() == [
        {
            "generation": FIRST.key(text),
            "parent": NO_PARENT,
            "caption": text,
            "source": text,
            "completions": [f"well {text}"],
        }
        for text in ("a dog", "a pig")
    ]
    assert [part.num_rows for part in unjudged(tables, 1)] == [1, 1]
    assert tables.find_unjudged(0, np.array([4])) == 1
    assert tables.find_unjudged(1) == 0


def test_unjudged_answers_can_be_read_while_others_are_looked_at(tables: StepTables, cache: GenerationStore) -> None:
    tables.ask(FIRST)
    answer(cache, FIRST, *set(TEXTS))
    tables.find_unjudged(0)
    blocks = tables.unjudged(1)
    first = next(blocks)
    assert tables.missing(0).tolist() == []
    judge(cache, FIRST, ["a dog"])
    assert [part.column("source")[0].as_py() for part in (first, *blocks)] == ["a dog", "a cat", "a cow", "a pig"]


def test_rows_are_accepted_by_any_attempt(tables: StepTables, cache: GenerationStore) -> None:
    tables.ask(FIRST)
    assert tables.rejected().tolist() == [] and tables.accepted() == 0
    answer(cache, FIRST, *set(TEXTS))
    judge(cache, FIRST, ["a cow"], ["a dog", "a cat"])
    judge(cache, FIRST, ["a dog", "a cat", "a cow", "a pig"], gates=OTHER_GATES)
    assert tables.rejected().tolist() == [0, 1, 2, 5] and tables.accepted() == 1
    tables.ask(SECOND, tables.rejected())
    judge(cache, SECOND, ["a dog"], ["a cat"])
    assert tables.rejected().tolist() == [1, 5] and tables.accepted() == 3


def test_step_2_judges_an_answer_for_each_generation_that_its_input_came_from(
    cache: GenerationStore, rows_of: Rows, reading: Reading, tmp_path: Path
) -> None:
    parents = [bytes([number]) * 16 for number in (1, 2, 1)]
    rows = rows_of(["a big dog", "a small dog", "a big dog"])
    rows = rows.append_column("paraphrase_1", pa.array(["one dog"] * 3))
    rows = rows.append_column("generation_1", pa.array(parents, pa.binary(16)))
    request = step_requests(OPTIONS, 2, "m")
    with closing(StepTables(2, cache, reading([rows]), GATES, tmp_path / "scratch")) as tables:
        tables.ask(request)
        # One request for all three, judged beside each different caption.
        assert tables.requests(0) == 1 and tables.missing(0).tolist() == [0]
        answer(cache, request, "one dog")
        assert tables.find_unjudged(0) == 2
        (block,) = unjudged(tables)
        assert block.select(["parent", "caption", "source"]).to_pylist() == [
            {"parent": parents[0], "caption": "a big dog", "source": "one dog"},
            {"parent": parents[1], "caption": "a small dog", "source": "one dog"},
        ]
        judge(cache, request, ["one dog"], parent=parents[0])
        judge(cache, request, failed=["one dog"], parent=parents[1])
        assert tables.rejected().tolist() == [1] and tables.accepted() == 2
