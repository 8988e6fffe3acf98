"""Filtering in processes: filter results are the same however answers are divided, and a killed process costs none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip.storage.answers import FILTER_RESULTS as STORED
from paraclip_core.errors import StageError
from paraclip_core.paraphrase import filter_pool, rounds
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filter_pool import FilterPool
from paraclip_core.paraphrase.filtering import AnswerFilter, FilterSpec
from paraclip_core.tables import ANSWERS, FILTER_RESULTS
from tests.kit.scripted_engine import Scripted
from tests.kit.tiny_encoder import LETTERS, tiny_encoder

KEYS = ("generation", "parent")
ROWS = 60
MANY = 100_000
"""Rows for which processes are worth starting."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its cosines mean nothing, and have all their digits."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def spec(encoder: Path) -> FilterSpec:
    """Filters of which some stop an answer, and similarities."""
    filters = FilterOptions(
        preset="capable",
        encoder=str(encoder),
        min_similarity=-1,
        min_caption_similarity=-1,
        extra=("tests.kit.scripted_filters:blue_input",),
    )
    return FilterSpec(filters, 2)


@pytest.fixture(scope="module")
def answers() -> pa.Table:
    """Answers of all kinds: none, one, several, empty ones and copies, of many lengths."""
    rng = np.random.default_rng(5)

    def text() -> str:
        return " ".join("".join(rng.choice(list(f"{LETTERS} "), rng.integers(3, 40))).split()) or "x"

    rows = [
        {
            "generation": number.to_bytes(16, "big"),
            "parent": (number // 2).to_bytes(16, "big"),
            "caption": f"a caption {text()}",
            "source": (source := f"{text()} {'blue' if number % 7 == 0 else 'red'}"),
            "completions": [text() for _ in range(number % 4)] + [source] * (number % 3 == 0) + [""] * (number % 5),
        }
        for number in range(ROWS)
    ]
    return pa.Table.from_pylist(rows, schema=ANSWERS)


@pytest.fixture(scope="module")
def answer_filter(spec: FilterSpec) -> AnswerFilter:
    return AnswerFilter(spec)


@pytest.fixture(scope="module")
def whole(answer_filter: AnswerFilter, answers: pa.Table) -> pa.Table:
    return pa.Table.from_batches([answer_filter.filter_block(answers.to_batches()[0])])


@pytest.fixture(scope="module")
def quick(spec: FilterSpec) -> FilterSpec:
    """Filters without an encoder, whose processes start at once."""
    return replace(spec, filters=FilterOptions(preset="off", extra=("tests.kit.scripted_filters:blue_input",)))


@pytest.fixture(scope="module")
def two(quick: FilterSpec) -> Iterator[FilterPool]:
    """Two processes with quick filters."""
    with closing(FilterPool(quick, 2)) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole_of_quick(quick: FilterSpec, answers: pa.Table) -> pa.Table:
    return pa.Table.from_batches([AnswerFilter(quick).filter_block(answers.to_batches()[0])])


def divided(answers: pa.Table, cuts: Sequence[int]) -> list[pa.RecordBatch]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < ROWS}), ROWS]
    whole = answers.to_batches()[0]
    return [whole.slice(start, stop - start) for start, stop in pairwise(edges)]


def together(filtered: Iterator[pa.RecordBatch], blocks: Sequence[pa.RecordBatch]) -> pa.Table:
    filter_results = list(filtered)
    assert [part.num_rows for part in filter_results] == [block.num_rows for block in blocks]
    return pa.Table.from_batches(filter_results)


def test_verdicts_are_rows_of_their_table(whole: pa.Table, spec: FilterSpec, answers: pa.Table) -> None:
    assert whole.schema.equals(FILTER_RESULTS)
    assert {name: whole.schema.field(name).type for name in STORED.columns} == {
        name: STORED.schema.field(name).type for name in STORED.columns
    }
    assert [whole.column(name) for name in KEYS] == [answers.column(name) for name in KEYS]
    reasons = set()
    for row, asked in zip(whole.to_pylist(), answers.to_pylist(), strict=True):
        assert row["filters"] == spec.digest
        reasons.add(row["reason"])
        if row["reason"] is None:
            assert row["accepted"] and row["answer"] is None
            for one in row["accepted"]:
                assert one["answer"] in asked["completions"]
                assert -1 <= one["similarity"] <= 1
        else:
            assert row["accepted"] == []
    assert {None, "blue_input", "no_paraphrase", "empty"} <= reasons
    assert max(len(row["accepted"]) for row in whole.to_pylist()) > 1


@settings(max_examples=5)
@given(cuts=st.lists(st.integers(1, ROWS - 1), max_size=8))
def test_no_division_changes_a_byte(
    answer_filter: AnswerFilter, answers: pa.Table, whole: pa.Table, cuts: list[int]
) -> None:
    blocks = divided(answers, cuts)
    assert pa.Table.from_batches([answer_filter.filter_block(block) for block in blocks]).equals(whole)


def test_an_encoder_in_another_process_changes_no_byte(spec: FilterSpec, answers: pa.Table, whole: pa.Table) -> None:
    # Of two processes the second does not start for a single block.
    with closing(FilterPool(spec, 2)) as pool:
        blocks = answers.to_batches()
        assert together(pool.filter(iter(blocks), MANY), blocks).equals(whole)


@pytest.mark.parametrize("size", [7, 25])
def test_two_processes_change_no_byte(two: FilterPool, answers: pa.Table, whole_of_quick: pa.Table, size: int) -> None:
    blocks = divided(answers, range(0, ROWS, size))
    assert together(two.filter(iter(blocks), MANY), blocks).equals(whole_of_quick)


def test_few_rows_are_filtered_here(spec: FilterSpec, answers: pa.Table, whole: pa.Table) -> None:
    before = set(active_children())
    with closing(FilterPool(spec, 2)) as pool:
        blocks = divided(answers, [20])
        assert together(pool.filter(iter(blocks), ROWS), blocks).equals(whole)
        assert set(active_children()) == before


def test_offered_blocks_come_back_in_order(two: FilterPool, answers: pa.Table, whole_of_quick: pa.Table) -> None:
    blocks = divided(answers, range(0, ROWS, 10))
    taken = [block for block in blocks if two.offer(block)]
    assert taken == blocks[:5]
    # No more are taken than processes have time for soon; none is lost.
    assert together(two.offered(wait=True), taken).equals(whole_of_quick.slice(0, 50))
    assert list(two.offered(wait=True)) == []
    assert two.offer(blocks[-1])
    assert together(two.offered(wait=True), blocks[-1:]).equals(whole_of_quick.slice(50))


def test_a_killed_process_costs_no_result(paraphrasing: Any, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BLOCK_ROWS", 10)
    monkeypatch.setattr(filter_pool, "BLOCK_ROWS", 1)
    captions, others = [f"a dog with number {number}" for number in range(200)], set(active_children())
    first = rounds.FIRST_ANSWERS

    def killing(done: int, total: int | None, phase: str, **_: Any) -> None:
        if (phase, done, total) == ("filtering", 30, 200 - first):
            for process in set(active_children()) - others:
                process.kill()

    step_rounds = paraphrasing.rounds([rows_of(captions)], Scripted(), processes=2, progress=killing)
    with (
        closing(step_rounds.tables),
        closing(step_rounds.pool),
        pytest.raises(StageError, match=r"a process that filters answers was killed.*run\.threads.*run again"),
    ):
        step_rounds.run()
    outcome = paraphrasing.run([rows_of(captions)], Scripted())
    assert outcome.answers == {text: f"well {text}" for text in captions}
    assert outcome.rounds.counts.generated == 0
    assert 0 < outcome.rounds.counts.filtered <= 200 - first - 30


@pytest.mark.nightly
def test_a_kill_while_another_one_starts_is_reported(
    quick: FilterSpec, answers: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = SpawnProcess.start, []

    def start_slowly(process: SpawnProcess) -> None:
        start(process)
        started.append(process)
        if len(started) == 2:
            started[0].kill()
            time.sleep(1)

    monkeypatch.setattr(SpawnProcess, "start", start_slowly)
    # Longer than what a pipe holds, so that one who writes it waits for one who reads.
    wide = pa.concat_tables([answers] * 40).combine_chunks().to_batches()[0]
    assert wide.nbytes > 2 * 64 * 1024
    with closing(FilterPool(quick, 2)) as pool, pytest.raises(StageError, match="was killed"):
        list(pool.filter(iter([wide] * 6), MANY))


def test_a_process_of_other_code_is_reported(
    quick: FilterSpec, answers: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FilterSpec, "digest", b"of another release")
    with closing(FilterPool(quick, 2)) as pool, pytest.raises(StageError, match="code that filters answers changed"):
        list(pool.filter(iter(answers.to_batches()), MANY))
