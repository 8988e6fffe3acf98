"""Select: the rows and rejects of a step, compared with a plain-Python reading of what its docstring says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip.storage.answers import AnswerStore
from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.requests import (
    INPUT_COLUMNS,
    NO_PARENT,
    Batches,
    StepTables,
    rejected_for,
    select,
    step_requests,
)
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES, VERDICTS

OPTIONS = ParaphraseOptions(engine="transformers")
GATES = b"g" * 16
INPUTS = ("a dog", "a cat", "a cow", "a pig")
# Some are the same but for case and punctuation.
ANSWERS = ("Yes", "yes.", "yes, two", "no", "É", "é!")
Reading = Callable[[Sequence[pa.RecordBatch]], Batches]
Rows = Callable[[Sequence[str]], pa.RecordBatch]


@dataclass(frozen=True)
class Judged:
    """A verdict."""

    accepted: tuple[tuple[str, float | None], ...] = ()
    answer: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Step:
    """Rows of inputs, the attempts of each, and the verdict on each input at each attempt."""

    inputs: tuple[str, ...]
    attempts: tuple[int, ...]
    verdicts: dict[tuple[str, int], Judged]
    batch_rows: int = 3


accepted = st.lists(
    st.tuples(st.sampled_from(ANSWERS), st.none() | st.sampled_from((0.25, 0.5))), min_size=1, max_size=3
).map(lambda some: Judged(tuple(some)))
refused = st.builds(Judged, answer=st.none() | st.sampled_from(ANSWERS), reason=st.sampled_from(("echo", "empty")))


@st.composite
def steps(draw: Any) -> Step:
    inputs = tuple(draw(st.lists(st.sampled_from(INPUTS), min_size=1, max_size=9)))
    attempts = tuple(draw(st.lists(st.integers(1, 3), min_size=len(inputs), max_size=len(inputs))))
    verdicts = {(text, attempt): draw(accepted | refused) for text in set(inputs) for attempt in range(3)}
    return Step(inputs, attempts, verdicts, draw(st.integers(1, 4)))


def plain(answer: str) -> str:
    return regex.sub(r"[^\pL\pN]+", " ", answer.lower()).strip()


def expected(step: Step, keep: int, max_repeats: int | None) -> tuple[list[Any], list[Any]]:
    """Rows as (row, attempt, answer, similarity) and rejects as (row, attempt, reason, answer), row by row."""
    asked = [(row, attempt) for row, count in enumerate(step.attempts) for attempt in range(count)]
    inputs_of: dict[str, set[str]] = {}
    for row, attempt in asked:
        for answer, _ in step.verdicts[step.inputs[row], attempt].accepted[:1]:
            inputs_of.setdefault(plain(answer), set()).add(step.inputs[row])
    floods = {answer for answer, inputs in inputs_of.items() if max_repeats is not None and len(inputs) > max_repeats}
    rows: dict[int, list[Any]] = {}
    rejects = []
    for row, attempt in asked:
        verdict = step.verdicts[step.inputs[row], attempt]
        kept = [(answer, similarity) for answer, similarity in verdict.accepted if plain(answer) not in floods]
        if kept:
            rows[row] = [(row, attempt, *one) for one in kept[:keep]]
        elif verdict.accepted:
            rejects.append((row, attempt, "repeated_flood", verdict.accepted[0][0]))
        else:
            rejects.append((row, attempt, verdict.reason, verdict.answer))
    return [one for row in sorted(rows) for one in rows[row]], rejects


class Bench:
    """A step whose verdicts are in a cache."""

    def __init__(self, step: Step, rows_of: Rows, reading: Reading, folder: Path) -> None:
        whole = rows_of(step.inputs)
        cut = [whole.slice(start, step.batch_rows) for start in range(0, whole.num_rows, step.batch_rows)]
        self.cache, self.step = AnswerStore(folder / "cache"), step
        self.tables = StepTables(1, self.cache, reading([*cut[:1], whole.slice(0, 0), *cut[1:]]), GATES, folder / "x")
        requests = [step_requests(OPTIONS, 1, "m", attempt) for attempt in range(3)]
        self.keys = {
            requests[attempt].key(text): (text, attempt) for text in step.inputs for attempt in range(len(requests))
        }
        verdicts = [
            {
                "generation": key,
                "parent": NO_PARENT,
                "gates": GATES,
                "accepted": [{"answer": a, "tokens": list(map(ord, a)), "similarity": s} for a, s in judged.accepted],
                "answer": judged.answer,
                "reason": judged.reason,
                "detail": judged.reason and f"because {judged.reason}",
                "similarity": judged.reason and 0.125,
            }
            for key, judged in ((key, step.verdicts[self.keys[key]]) for key in self.keys)
        ]
        self.cache.append_verdicts(pa.Table.from_pylist(verdicts, schema=VERDICTS))
        self.tables.ask(requests[0])
        for attempt in (1, 2):
            again = [row for row, count in enumerate(step.attempts) if count > attempt]
            self.tables.ask(requests[attempt], np.array(again, np.int64))
        self.captions = whole

    def select(self, keep: int, max_repeats: int | None) -> tuple[pa.Table, pa.Table, Any]:
        selection = select(self.tables, keep, max_repeats)
        parts = list(selection.batches())
        assert len(parts) == len(list(self.tables.batches(("caption",))))
        rows = pa.Table.from_batches([rows for rows, _ in parts], PARAPHRASES)
        return rows, pa.Table.from_batches([rejects for _, rejects in parts], PARAPHRASE_REJECTS), selection

    def close(self) -> None:
        self.tables.close()


@settings(max_examples=30)
@given(step=steps(), keep=st.integers(1, 3), max_repeats=st.none() | st.integers(1, 3))
def test_rows_and_rejects_are_the_references(
    rows_of: Rows, reading: Reading, step: Step, keep: int, max_repeats: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Bench(step, rows_of, reading, Path(folder))) as bench:
        rows, rejects, selection = bench.select(keep, max_repeats)
        wanted_rows, wanted_rejects = expected(step, keep, max_repeats)
        ids = bench.captions.column("caption_id").to_pylist()
        found = [
            (ids.index(row["caption_id"]), bench.keys[row["generation_1"]][1], row["paraphrase_1"], row["similarity_1"])
            for row in rows.to_pylist()
        ]
        assert found == wanted_rows
        for row in rows.to_pylist():
            same = bench.captions.slice(ids.index(row["caption_id"]), 1).to_pylist()[0]
            assert {name: row[name] for name in INPUT_COLUMNS[1]} == same
            assert row["paraphrase_1_tokens"] == list(map(ord, row["paraphrase_1"]))
            assert (row["paraphrase_2"], row["generation_2"]) == (None, None)
            assert bench.keys[row["generation_1"]][0] == row["caption"]
        found = [(ids.index(r["caption_id"]), r["attempt"], r["reason"], r["answer"]) for r in rejects.to_pylist()]
        assert found == wanted_rejects
        for reject in rejects.to_pylist():
            flooded = f"the same answer for more than {max_repeats} inputs"
            assert reject["detail"] == (flooded if "flood" in reject["reason"] else f"because {reject['reason']}")
            assert bench.keys[reject["generation"]] == (reject["input"], reject["attempt"])
            assert reject["step"] == 1
        assert selection.kept == len(wanted_rows) and selection.accepted == len({row for row, *_ in wanted_rows})
        reasons = [reason for _, _, reason, _ in wanted_rejects]
        assert selection.reasons == {reason: reasons.count(reason) for reason in sorted(set(reasons))}


@settings(max_examples=15)
@given(step=steps(), max_repeats=st.none() | st.integers(1, 3))
def test_rows_without_an_accepted_answer_are_named_by_their_last_reason(
    rows_of: Rows, reading: Reading, step: Step, max_repeats: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Bench(step, rows_of, reading, Path(folder))) as bench:
        rows, rejects = expected(step, 1, max_repeats)
        last = {row: reason for row, _, reason, _ in rejects}
        accepted = {row for row, *_ in rows}
        for reason in ("echo", "empty", "repeated_flood"):
            wanted = [(step.attempts[row], row) for row in last if row not in accepted and last[row] == reason]
            named = rejected_for(bench.tables, reason, max_repeats)
            assert [(attempt, row) for attempt in named for row in named[attempt].tolist()] == sorted(wanted)


def test_a_flood_is_one_for_all_of_its_inputs_whatever_their_order(
    rows_of: Rows, reading: Reading, tmp_path: Path
) -> None:
    verdicts = {(text, attempt): Judged((("Yes!", None),)) for text in INPUTS for attempt in range(3)}
    verdicts["a pig", 0] = Judged((("yes", None), ("a hog", None)))
    results = []
    for number, inputs in enumerate((INPUTS, INPUTS[::-1])):
        step = Step(inputs, (1,) * len(inputs), verdicts)
        with closing(Bench(step, rows_of, reading, tmp_path / str(number))) as bench:
            rows, rejects, _ = bench.select(1, 3)
            results.append({row["caption"]: row["paraphrase_1"] for row in rows.to_pylist()})
            # The next of its answers takes the place of a flood.
            assert results[-1] == {"a pig": "a hog"} and rejects.num_rows == 3
            assert bench.select(1, 4)[0].num_rows == 4
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["it's here", 'a "quoted" folder', "100% and $x"])
def test_any_folder_will_do_for_scratch(name: str, rows_of: Rows, reading: Reading, tmp_path: Path) -> None:
    step = Step(INPUTS, (1,) * 4, {(text, n): Judged((("yes", None),)) for text in INPUTS for n in range(3)})
    (tmp_path / name).mkdir()
    with closing(Bench(step, rows_of, reading, tmp_path / name)) as bench:
        assert bench.select(1, None)[0].num_rows == 4
