"""A step's tables: rows by their numbers, what is missing and what is not filtered; and select, compared with a plain
reading of what its docstring says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip.storage.answers import AnswerStore
from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.keys import RequestKeys, step_requests
from paraclip_core.paraphrase.selection import select
from paraclip_core.paraphrase.step_tables import INPUT_COLUMNS, NO_PARENT, Batches, RowCursor, StepTables
from paraclip_core.tables import ANSWERS, FILTER_RESULTS, GENERATIONS, PARAPHRASE_REJECTS, PARAPHRASES

Reading = Callable[[Sequence[pa.RecordBatch]], Batches]


@given(st.lists(st.integers(0, 6), max_size=12), st.data())
def test_a_cursor_gives_the_rows_of_its_numbers_however_they_lie_in_batches(sizes: list[int], data: Any) -> None:
    starts = np.cumsum([0, *sizes])
    batches = [
        pa.RecordBatch.from_pydict({"x": pa.array(range(start, start + size), pa.int64())})
        for start, size in zip(starts, sizes, strict=False)
    ]
    wanted = sorted(data.draw(st.sets(st.integers(0, int(starts[-1]) - 1)))) if starts[-1] else []
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(wanted) - 1)))))
    cursor, given_rows = RowCursor(batches), []
    for numbers in np.split(np.array(wanted, np.int64), cuts):
        if len(numbers):
            given_rows += cursor.take(numbers).column("x").to_pylist()
    assert given_rows == wanted


OPTIONS = ParaphraseOptions(engine="transformers")
FIRST, SECOND = (step_requests(OPTIONS, 1, "m", attempt) for attempt in range(2))
FILTERS, OTHER_FILTERS = b"g" * 16, b"o" * 16
TEXTS = ["a dog", "a cat", "a dog", "a cow", "a pig", "a cat"]
Rows = Callable[[Sequence[str]], pa.RecordBatch]


def answer(cache: AnswerStore, request: RequestKeys, *texts: str) -> None:
    same = {"step": request.step, "attempt": request.attempt, "engine": "e", "model": "m", "prompt": "p"}
    same |= {"prompt_hash": bytes(16), "sampling": "{}", "seed": 0, "prompt_tokens": 1, "completion_tokens": 1}
    rows = [same | {"key": request.key(text), "input": text, "completions": [f"well {text}"]} for text in texts]
    cache.append(pa.Table.from_pylist(rows, schema=GENERATIONS))


def judge(
    cache: AnswerStore,
    request: RequestKeys,
    passed: Sequence[str] = (),
    failed: Sequence[str] = (),
    filters: bytes = FILTERS,
    parent: bytes = NO_PARENT,
) -> None:
    same, accepted = {"parent": parent, "filters": filters}, [{"answer": "x", "similarity": None}]
    outcomes = [*((text, accepted, None) for text in passed), *((text, [], "echo") for text in failed)]
    rows = [same | {"generation": request.key(t), "accepted": a, "reason": reason} for t, a, reason in outcomes]
    cache.append_filter_results(pa.Table.from_pylist(rows, schema=FILTER_RESULTS))


@pytest.fixture
def tables(cache: AnswerStore, rows_of: Rows, reading: Reading, tmp_path: Path) -> Iterator[StepTables]:
    """Step 1 of six captions, four of them different, in two batches."""
    rows = rows_of(TEXTS)
    with closing(
        StepTables(1, cache, reading([rows.slice(0, 4), rows.slice(4)]), FILTERS, tmp_path / "scratch")
    ) as step_tables:
        yield step_tables


def unfiltered(tables: StepTables, block_rows: int = 512) -> list[pa.RecordBatch]:
    return list(tables.unfiltered(block_rows))


def test_what_has_no_answer_is_missing_once_for_each_text(tables: StepTables, cache: AnswerStore) -> None:
    assert (tables.add(FIRST), tables.rows) == (4, 6)
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
    # A further attempt is asked for some rows.
    assert (tables.add(SECOND, np.array([1, 3, 5])), tables.rows) == (2, 6)
    assert tables.missing(1).tolist() == [1, 3]


def test_answers_are_unjudged_until_the_same_filters_have_a_result(tables: StepTables, cache: AnswerStore) -> None:
    tables.add(FIRST)
    assert tables.find_unfiltered(0) == 0 and unfiltered(tables) == []
    answer(cache, FIRST, "a dog", "a pig", "a cat")
    judge(cache, FIRST, ["a pig"], filters=OTHER_FILTERS)
    judge(cache, FIRST, ["a cat"])
    assert tables.find_unfiltered(0) == 2
    (block,) = unfiltered(tables)
    assert block.schema == ANSWERS
    same = {"parent": NO_PARENT}
    assert block.to_pylist() == [
        same | {"generation": FIRST.key(text), "caption": text, "source": text, "completions": [f"well {text}"]}
        for text in ("a dog", "a pig")
    ]
    assert [part.num_rows for part in unfiltered(tables, 1)] == [1, 1]
    assert tables.find_unfiltered(0, np.array([4])) == 1
    assert tables.find_unfiltered(1) == 0


def test_unjudged_answers_can_be_read_while_others_are_looked_at(tables: StepTables, cache: AnswerStore) -> None:
    tables.add(FIRST)
    answer(cache, FIRST, *set(TEXTS))
    tables.find_unfiltered(0)
    blocks = tables.unfiltered(1)
    first = next(blocks)
    assert tables.missing(0).tolist() == []
    judge(cache, FIRST, ["a dog"])
    assert [part.column("source")[0].as_py() for part in (first, *blocks)] == ["a dog", "a cat", "a cow", "a pig"]


def test_rows_are_accepted_by_any_attempt(tables: StepTables, cache: AnswerStore) -> None:
    tables.add(FIRST)
    assert tables.rejected().tolist() == [] and tables.accepted() == 0
    answer(cache, FIRST, *set(TEXTS))
    judge(cache, FIRST, ["a cow"], ["a dog", "a cat"])
    judge(cache, FIRST, ["a dog", "a cat", "a cow", "a pig"], filters=OTHER_FILTERS)
    assert tables.rejected().tolist() == [0, 1, 2, 5] and tables.accepted() == 1
    tables.add(SECOND, tables.rejected())
    judge(cache, SECOND, ["a dog"], ["a cat"])
    assert tables.rejected().tolist() == [1, 5] and tables.accepted() == 3


def test_step_2_judges_an_answer_beside_each_input(
    cache: AnswerStore, rows_of: Rows, reading: Reading, tmp_path: Path
) -> None:
    parents = [bytes([number]) * 16 for number in (1, 2, 1)]
    rows = rows_of(["a big dog", "a small dog", "a big dog"])
    rows = rows.append_column("paraphrase_1", pa.array(["one dog"] * 3))
    rows = rows.append_column("generation_1", pa.array(parents, pa.binary(16)))
    request = step_requests(OPTIONS, 2, "m")
    with closing(StepTables(2, cache, reading([rows]), FILTERS, tmp_path / "scratch")) as tables:
        # One request for all three, filtered beside each different caption.
        assert tables.add(request) == 1 and tables.missing(0).tolist() == [0]
        answer(cache, request, "one dog")
        assert tables.find_unfiltered(0) == 2
        (block,) = unfiltered(tables)
        assert block.select(["parent", "caption", "source"]).to_pylist() == [
            {"parent": parents[0], "caption": "a big dog", "source": "one dog"},
            {"parent": parents[1], "caption": "a small dog", "source": "one dog"},
        ]
        judge(cache, request, ["one dog"], parent=parents[0])
        judge(cache, request, failed=["one dog"], parent=parents[1])
        assert tables.rejected().tolist() == [1] and tables.accepted() == 2


INPUTS = ("a dog", "a cat", "a cow", "a pig")
SAID = ("Yes", "yes.", "yes, two", "no", "É", "é!")


@dataclass(frozen=True)
class Filtered:
    accepted: tuple[tuple[str, float | None], ...] = ()
    answer: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Step:
    """Rows of inputs, how often each is asked for at most, and the filter result on each input at each attempt."""

    inputs: tuple[str, ...]
    attempts: int
    filter_results: dict[tuple[str, int], Filtered]
    batch_rows: int = 3


accepted = st.lists(
    st.tuples(st.sampled_from(SAID), st.none() | st.sampled_from((0.25, 0.5))), min_size=1, max_size=3
).map(lambda some: Filtered(tuple(some)))
refused = st.builds(Filtered, answer=st.none() | st.sampled_from(SAID), reason=st.sampled_from(("echo", "empty")))


@st.composite
def steps(draw: Any) -> Step:
    inputs = tuple(draw(st.lists(st.sampled_from(INPUTS), min_size=1, max_size=9)))
    filter_results = {(text, attempt): draw(accepted | refused) for text in set(inputs) for attempt in range(3)}
    return Step(inputs, draw(st.integers(1, 3)), filter_results, draw(st.integers(1, 4)))


def expected(step: Step, keep: int) -> tuple[list[Any], list[Any]]:
    """Rows as (row, attempt, answer, similarity) and rejects as (row, attempt, reason, answer), row by row."""
    rows, rejects = [], []
    for row, text in enumerate(step.inputs):
        for attempt in range(step.attempts):
            result = step.filter_results[text, attempt]
            if result.accepted:
                rows += [(row, attempt, *one) for one in result.accepted[:keep]]
                break
            rejects.append((row, attempt, result.reason, result.answer))
    return rows, rejects


class Bench:
    """A step whose filter results are in a cache."""

    def __init__(self, step: Step, rows_of: Rows, reading: Reading, folder: Path) -> None:
        whole = rows_of(step.inputs)
        cut = [whole.slice(start, step.batch_rows) for start in range(0, whole.num_rows, step.batch_rows)]
        self.cache, self.step = AnswerStore(folder / "cache"), step
        self.tables = StepTables(1, self.cache, reading([*cut[:1], whole.slice(0, 0), *cut[1:]]), FILTERS, folder / "x")
        requests = [step_requests(OPTIONS, 1, "m", attempt) for attempt in range(3)]
        self.keys = {r.key(text): (text, attempt) for text in step.inputs for attempt, r in enumerate(requests)}
        rows = []
        for key, place in self.keys.items():
            result = step.filter_results[place]
            accepted = [{"answer": a, "similarity": s} for a, s in result.accepted]
            rows.append({"generation": key, "parent": NO_PARENT, "filters": FILTERS, "accepted": accepted})
            rows[-1] |= {"answer": result.answer, "reason": result.reason}
            if result.reason:
                rows[-1] |= {"detail": f"because {result.reason}", "similarity": 0.125}
        self.cache.append_filter_results(pa.Table.from_pylist(rows, schema=FILTER_RESULTS))
        self.tables.add(requests[0])
        for request in requests[1 : step.attempts]:
            self.tables.add(request, self.tables.rejected())
        self.captions = whole

    def select(self, keep: int) -> tuple[pa.Table, pa.Table, Any]:
        selection = select(self.tables, keep)
        rows = pa.Table.from_batches(selection.rows(), PARAPHRASES)
        return rows, pa.Table.from_batches(selection.rejects(), PARAPHRASE_REJECTS), selection

    def close(self) -> None:
        self.tables.close()


@settings(max_examples=15)
@given(step=steps(), keep=st.integers(1, 3))
def test_rows_and_rejects_are_the_references(rows_of: Rows, reading: Reading, step: Step, keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Bench(step, rows_of, reading, Path(folder))) as bench:
        rows, rejects, selection = bench.select(keep)
        wanted_rows, wanted_rejects = expected(step, keep)
        ids = bench.captions.column("caption_id").to_pylist()
        written = [
            (ids.index(row["caption_id"]), bench.keys[row["generation_1"]][1], row["paraphrase_1"], row["similarity_1"])
            for row in rows.to_pylist()
        ]
        assert written == wanted_rows
        for row in rows.to_pylist():
            same = bench.captions.slice(ids.index(row["caption_id"]), 1).to_pylist()[0]
            assert {name: row[name] for name in INPUT_COLUMNS[1]} == same
            assert (row["paraphrase_2"], row["generation_2"]) == (None, None)
            assert bench.keys[row["generation_1"]][0] == row["caption"]
        written = [(ids.index(r["caption_id"]), r["attempt"], r["reason"], r["answer"]) for r in rejects.to_pylist()]
        assert written == wanted_rejects
        for reject in rejects.to_pylist():
            assert reject["detail"] == f"because {reject['reason']}"
            assert bench.keys[reject["generation"]] == (reject["input"], reject["attempt"])
            assert reject["step"] == 1
        assert selection.kept == len(wanted_rows) and selection.accepted == len({row for row, *_ in wanted_rows})
        reasons = [reason for _, _, reason, _ in wanted_rejects]
        assert selection.reasons == {reason: reasons.count(reason) for reason in sorted(set(reasons))}


@pytest.mark.parametrize("name", ["it's here", 'a "quoted" folder', "100% and $x"])
def test_any_folder_will_do_for_scratch(name: str, rows_of: Rows, reading: Reading, tmp_path: Path) -> None:
    step = Step(INPUTS, 1, {(text, n): Filtered((("yes", None),)) for text in INPUTS for n in range(3)})
    (tmp_path / name).mkdir()
    with closing(Bench(step, rows_of, reading, tmp_path / name)) as bench:
        assert bench.select(1)[0].num_rows == 4
