"""Judging: the order of the answers that pass, the reason of those that do not, and what a verdict depends on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise, product
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import Scripted  # pyright: ignore[reportMissingImports]
from tiny_encoder import LETTERS, tiny_encoder  # pyright: ignore[reportMissingImports]

from paraclip.storage.answers import VERDICTS as STORED
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions
from paraclip_core.errors import StageError
from paraclip_core.paraphrase import judge as judge_module
from paraclip_core.paraphrase import rounds
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.judge import (
    GATES_VERSION,
    Candidate,
    Judge,
    JudgePool,
    JudgeSpec,
    Request,
    Verdict,
)
from paraclip_core.paraphrase.prompts import FEW_SHOT
from paraclip_core.paraphrase.words import words
from paraclip_core.tables import ANSWERS, VERDICTS, text_hash


class WordVectors:
    """Bag-of-letters vectors: similar texts are close, without a model."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.full((len(texts), 27), 1e-6, dtype=np.float32)
        for row, text in enumerate(texts):
            for char in "".join(words(text)):
                vectors[row, min(abs(ord(char) - ord("a")), 26)] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judge_of(step: int = 1, **options: object) -> Judge:
    chosen = {"preset": "small-model", "min_similarity": 0.3, **options}
    return Judge(JudgeSpec(GateOptions.model_validate(chosen), step), WordVectors())


def test_all_that_pass_are_handed_on_the_best_first() -> None:
    text = "a small dog on the beach"
    answers = [f"{text}.", "A sunny day of joy", "A small dog is on a beach.", "A little dog on the beach."]
    verdict = judge_of().judge([Request(text, text, answers)])[0]
    assert verdict.reason is None and verdict.answer is None
    assert verdict.accepted[0][0] == "A little dog on the beach."
    assert verdict.accepted[0][1] is not None and verdict.accepted[0][1] > 0.8
    text = "a small dog on the wide beach"
    answers = ["A little dog on the broad beach", "the small dog is on a wide beach", "A tiny dog on the wide beach"]
    accepted = judge_of(preset="capable").judge([Request(text, text, [*answers, "nonsense", *answers])])[0].accepted
    assert sorted(one for one, _ in accepted) == sorted(answers)
    # The copy is nearest, and yet last.
    assert accepted[-1][0] == answers[1]
    answers = ["A little dog on the beach with a lot of small dog things", "A dog that is little on the beach"]
    verdict = judge_of().judge([Request("a small dog on the beach", "a small dog on the beach", answers)])[0]
    assert verdict.accepted[0][0] == answers[1]


SMALL = "paraclip_core.paraphrase.gates.small"


def test_step_2_must_stay_near_its_input_and_the_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SMALL}.MIN_WORD_SIMILARITY", -1)
    caption, source = "a small dog is on the beach", "a little dog is on the beach"
    near, between = "the tiny dog lies on the beach", "a tiny dog lies on the beach"
    angles = {caption: 1.2, between: 0.6}

    class Angles:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            turned = np.array([angles.get(text, 0.0) for text in texts])
            return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)

    loose = {"min_similarity": -1, "min_caption_similarity": -1}
    judge = Judge(JudgeSpec(GateOptions.model_validate({"preset": "small-model", **loose}), 2), Angles())
    assert judge.judge([Request(caption, source, [near, between])])[0].accepted[0][0] == between


def test_the_reason_is_that_of_the_answer_that_came_furthest() -> None:
    verdict = judge_of().judge([Request("two dogs", "two dogs", ["", "I cannot say", "three dogs"])])[0]
    assert (verdict.reason, verdict.answer, verdict.accepted) == ("changed_number", "three dogs", ())
    for preset in ("off", "capable", "small-model"):
        verdict = judge_of(preset=preset).judge([Request("a dog", "a dog", [])])[0]
        assert (verdict.reason, verdict.answer) == ("no_paraphrase", None)
    verdict = judge_of(preset="off").judge([Request("a dog", "a dog", ["", '"A dog."', "other", "A dog."])])[0]
    assert verdict.accepted == (("A dog.", None), ("other", None))
    assert judge_of(preset="off").judge([Request("a dog", "a dog", ["", "?"])])[0].reason == "empty"


@pytest.mark.parametrize("preset", ["off", "capable", "small-model"])
@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_no_text_breaks_a_verdict(preset: str, caption: str, source: str, answers: list[str]) -> None:
    verdict = judge_of(2, preset=preset).judge([Request(caption, source, answers)])[0]
    assert (verdict.reason is None) == bool(verdict.accepted)


def test_synonyms_make_further_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SMALL}.MIN_WORD_SIMILARITY", -1)
    options = GateOptions(preset="small-model", min_similarity=-1)
    judge, request = Judge(JudgeSpec(options, 1), WordVectors()), Request("a red lamp", "a red lamp", ["a red lamp"])
    assert judge.judge([request])[0].reason == "echo"
    judge.synonyms = {"lamp": ("lantern",)}
    assert [answer for answer, _ in judge.judge([request])[0].accepted] == ["a red lantern"]


def test_without_an_encoder_gates_on_meaning_pass() -> None:
    judge = Judge(JudgeSpec(GateOptions(preset="small-model"), 1))
    assert judge.judge([Request("a red lamp", "a red lamp", ["a red quux"])]) == [Verdict((("a red quux", None),))]


def test_the_digest_names_all_that_decides_a_verdict() -> None:
    off = GateOptions(preset="off")
    base = JudgeSpec(off, 1).digest
    assert len(base) == 16 and base == JudgeSpec(GateOptions.model_validate({"preset": False}), 1).digest
    others = [
        JudgeSpec(off, 2).digest,
        JudgeSpec(off, 1, (("a dog", "a puppy"),)).digest,
        JudgeSpec(off, 1, context_length=64).digest,
        JudgeSpec(off, 1, words="thesaurus").digest,
        JudgeSpec(GateOptions(preset="off", max_length_ratio=0.5), 1).digest,
    ]
    assert len({base, *others}) == 6
    # Where models compute changes no verdict.
    assert JudgeSpec(GateOptions(preset="off", device="auto"), 1).digest == base


CAPTION = "a small dog on the beach"


def explained(preset: str, answers: Sequence[str], **options: object) -> tuple[list[Candidate], list[str], str | None]:
    """Candidates, and the answers that the verdict accepts, or its reason."""
    gates = GateOptions.model_validate({"preset": preset, "min_similarity": 0.3, **options})
    judge = Judge(JudgeSpec(gates, 1), WordVectors())
    request = Request(CAPTION, CAPTION, answers)
    verdict = judge.judge([request])[0]
    return judge.explain([request])[0], [answer for answer, _ in verdict.accepted], verdict.reason


def failing(candidate: Candidate) -> list[str]:
    return [reason for reason, detail in candidate.results.items() if detail is not None]


def test_every_gate_is_asked_and_the_verdict_is_the_same() -> None:
    answers = [
        "A little dog is on the beach.",
        "I'm sorry, I cannot paraphrase <b>this</b> as it is so very long and says so many other things.",
        CAPTION,
        "zzz",
    ]
    candidates, accepted, _ = explained("capable", answers)
    assert [one.answer for one in candidates if one.accepted] == accepted == [answers[0]]
    gates = gates_of(GateOptions(preset="capable"))
    assert list(candidates[0].results) == [*gates.text, *gates.meaning]
    assert candidates[0].similarity is not None and candidates[0].similarity > 0.8
    # The first alone would be the verdict's reason.
    assert {"refusal_or_preamble", "character_set"} <= {*failing(candidates[1])}
    assert "echo" in failing(candidates[2]) and failing(candidates[3])


def test_the_reason_of_a_verdict_is_the_first_gate_that_fails() -> None:
    for preset in ("off", "capable", "small-model"):
        for answer in ("", "...", CAPTION, "zzz", "a red cat near a green car and a bus, a train and a plane"):
            candidates, accepted, reason = explained(preset, [answer])
            assert ([*failing(candidates[0])] or [None])[0] == reason
            assert [one.answer for one in candidates if one.accepted] == accepted


def test_of_nothing_no_gate_but_the_first_is_asked() -> None:
    candidates, accepted, reason = explained("small-model", ["", "!?"])
    assert [list(one.results) for one in candidates] == [["empty"], ["empty"]]
    assert (accepted, reason) == ([], "empty")
    assert explained("capable", [])[0] == []


DATA = Path(__file__).parents[2] / "data"
SYNONYMS = {"dog": ("hound", "puppy"), "man": ("guy",), "woman": ("lady",), "beach": ("shore",), "street": ("road",)}
PINNED = {"7d0b61f3a9c24e58b1f60c2d94a8e735": "31c905f815cc5c7e793293dfd6b2761f"}


def test_a_changed_verdict_needs_another_version() -> None:
    """Stored verdicts count as long as `GATES_VERSION` stays: where this digest changes, change both."""
    whole = Tokenizer(context_length=4096)
    rows = [
        json.loads(line) for path in sorted(DATA.glob("*/*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    texts = [
        (row["caption"], row.get("source") or row["caption"], row["answer"])
        for row in rows
        if "answer" in row and "caption" in row
    ]
    outcomes = []
    for preset, step in product(("capable", "small-model"), (1, 2)):
        spec = JudgeSpec(GateOptions(preset=preset, min_similarity=0.5), step, FEW_SHOT[step].examples)
        judge = Judge(spec, WordVectors(), pieces=lambda text: len(whole.encode(text)) - 2)
        judge.synonyms = SYNONYMS
        for verdict in judge.judge([Request(caption, source, [answer]) for caption, source, answer in texts]):
            outcomes.append(json.dumps([[text for text, _ in verdict.accepted], verdict.reason]))
    assert {GATES_VERSION: text_hash(*outcomes).hex()} == PINNED


KEYS = ("generation", "parent")
ROWS = 60
MANY = 100_000
"""Rows for which processes are worth starting."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its cosines mean nothing, and have all their digits."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def spec(encoder: Path) -> JudgeSpec:
    """Gates of which some stop an answer, and similarities."""
    gates = GateOptions(
        preset="capable",
        encoder=str(encoder),
        min_similarity=-1,
        min_caption_similarity=-1,
        extra=("scripted_gates:blue_input",),
    )
    return JudgeSpec(gates.resolved("capable"), 2, (), 77)


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
def judge(spec: JudgeSpec) -> Judge:
    return Judge.with_models(spec)


@pytest.fixture(scope="module")
def whole(judge: Judge, answers: pa.Table) -> pa.Table:
    return pa.Table.from_batches([judge.judge_block(answers.to_batches()[0])])


@pytest.fixture(scope="module")
def two(spec: JudgeSpec) -> Iterator[JudgePool]:
    """Two processes, which take some seconds to start."""
    with closing(JudgePool(spec, 2)) as pool:
        yield pool


def divided(answers: pa.Table, cuts: Sequence[int]) -> list[pa.RecordBatch]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < ROWS}), ROWS]
    whole = answers.to_batches()[0]
    return [whole.slice(start, stop - start) for start, stop in pairwise(edges)]


def together(judged: Iterator[tuple[pa.RecordBatch, pa.RecordBatch]], blocks: Sequence[pa.RecordBatch]) -> pa.Table:
    pairs = list(judged)
    assert [block for block, _ in pairs] == list(blocks)
    return pa.Table.from_batches([verdicts for _, verdicts in pairs])


def test_verdicts_are_rows_of_their_table(whole: pa.Table, spec: JudgeSpec, answers: pa.Table) -> None:
    assert whole.schema.equals(VERDICTS)
    assert {name: whole.schema.field(name).type for name in STORED.columns} == {
        name: STORED.schema.field(name).type for name in STORED.columns
    }
    assert [whole.column(name) for name in KEYS] == [answers.column(name) for name in KEYS]
    encode, reasons = Tokenizer().encode, set()
    for row, asked in zip(whole.to_pylist(), answers.to_pylist(), strict=True):
        assert row["gates"] == spec.digest
        reasons.add(row["reason"])
        if row["reason"] is None:
            assert row["accepted"] and row["answer"] is None
            for one in row["accepted"]:
                assert one["answer"] in asked["completions"] and one["tokens"] == encode(one["answer"])
                assert -1 <= one["similarity"] <= 1
        else:
            assert row["accepted"] == []
    assert {None, "blue_input", "no_paraphrase", "empty"} <= reasons
    assert max(len(row["accepted"]) for row in whole.to_pylist()) > 1


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, ROWS - 1), max_size=8))
def test_no_division_changes_a_byte(judge: Judge, answers: pa.Table, whole: pa.Table, cuts: list[int]) -> None:
    blocks = divided(answers, cuts)
    assert pa.Table.from_batches([judge.judge_block(block) for block in blocks]).equals(whole)


def test_two_processes_change_no_byte(two: JudgePool, answers: pa.Table, whole: pa.Table) -> None:
    for size in (7, 25):
        blocks = divided(answers, range(0, ROWS, size))
        assert together(two.judge(iter(blocks), MANY), blocks).equals(whole)


def test_few_rows_are_judged_here(spec: JudgeSpec, answers: pa.Table, whole: pa.Table) -> None:
    with closing(JudgePool(spec, 2)) as pool:
        blocks = divided(answers, [20])
        assert together(pool.judge(iter(blocks), ROWS), blocks).equals(whole)
        assert not pool._pools


def test_offered_blocks_come_back_in_order(two: JudgePool, answers: pa.Table, whole: pa.Table) -> None:
    blocks = divided(answers, range(0, ROWS, 10))
    taken = [block for block in blocks if two.offer(block)]
    assert taken == blocks[:5]
    # No more are taken than processes have time for soon; none is lost.
    verdicts = together(two.offered(wait=True), taken)
    assert verdicts.equals(whole.slice(0, 50))
    assert list(two.offered(wait=True)) == []
    assert two.offer(blocks[-1])
    assert together(two.offered(wait=True), blocks[-1:]).equals(whole.slice(50))


def kill(pool: JudgePool) -> None:
    executor = pool._pools[-1]
    os.kill(next(iter(executor._processes)), signal.SIGKILL)
    # The others may finish what little there is before anyone looks.
    while not executor._broken:
        time.sleep(0.01)


def test_a_killed_process_costs_no_verdict(paraphrasing: Any, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BLOCK_ROWS", 10)
    monkeypatch.setattr(rounds, "FIRST_ANSWERS", 200)
    monkeypatch.setattr("paraclip_core.paraphrase.judge.BLOCK_ROWS", 1)
    captions = [f"a dog with number {number}" for number in range(200)]
    step_rounds = paraphrasing.rounds([rows_of(captions)], Scripted(), processes=2)
    judge = JudgePool.judge

    def killing(self: JudgePool, blocks: Any, count: int) -> Iterator[Any]:
        for number, judged in enumerate(judge(self, blocks, count)):
            yield judged
            if number == 2:
                kill(self)

    monkeypatch.setattr(JudgePool, "judge", killing)
    with (
        closing(step_rounds.tables),
        closing(step_rounds._pool),
        pytest.raises(StageError, match=r"a process that judges answers was killed.*run\.threads.*run again"),
    ):
        step_rounds.run()
    monkeypatch.undo()
    outcome = paraphrasing.run([rows_of(captions)], Scripted())
    assert outcome.answers == {text: f"well {text}" for text in captions}
    assert outcome.rounds.counts.generated == 0
    assert 0 < outcome.rounds.counts.judged < 200 - 2 * 10


@pytest.mark.nightly
def test_a_kill_while_another_one_starts_is_told(
    spec: JudgeSpec, answers: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = SpawnProcess.start, []

    def start_slowly(process: SpawnProcess) -> None:
        start(process)
        started.append(process)
        if len(started) == 2:
            os.kill(started[0].pid, signal.SIGKILL)
            time.sleep(1)

    monkeypatch.setattr(SpawnProcess, "start", start_slowly)
    # Longer than what a pipe holds, so that one who writes it waits for one who reads.
    wide = pa.concat_tables([answers] * 40).combine_chunks().to_batches()[0]
    assert wide.nbytes > 2 * 64 * 1024
    # Gates without an encoder, whose processes start at once.
    quick = replace(spec, gates=GateOptions(preset="off", extra=("scripted_gates:blue_input",)))
    with closing(JudgePool(quick, 2)) as pool, pytest.raises(StageError, match="was killed"):
        list(pool.judge(iter([wide] * 6), MANY))


def test_a_process_of_other_code_is_told(spec: JudgeSpec, answers: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_spec": spec, "_digest": b"of another release"}.items():
        monkeypatch.setattr(judge_module, name, value, raising=False)
    with pytest.raises(StageError, match="code that judges was changed"):
        judge_module._judge_block(answers.to_batches()[0], "")
