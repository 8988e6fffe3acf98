"""Filtering: the order of the answers that pass, the reason of those that do not, and what a filter result depends
on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.demo.synonyms import variants
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filtering import (
    FILTERS_VERSION,
    AnswerFilter,
    Candidate,
    FilterResult,
    FilterSpec,
    Request,
)
from paraclip_core.paraphrase.filters import filters_of
from paraclip_core.paraphrase.prompts import FEW_SHOT
from paraclip_core.paraphrase.words import words
from paraclip_core.tables import text_hash


class WordVectors:
    """Bag-of-letters vectors: similar texts are close, without a model."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.full((len(texts), 27), 1e-6, dtype=np.float32)
        for row, text in enumerate(texts):
            for char in "".join(words(text)):
                vectors[row, min(abs(ord(char) - ord("a")), 26)] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judge_of(step: int = 1, **options: object) -> AnswerFilter:
    chosen = {"preset": "small-model", "min_similarity": 0.3, **options}
    return AnswerFilter(FilterSpec(FilterOptions.model_validate(chosen), step), WordVectors())


def test_all_that_pass_are_handed_on_the_best_first() -> None:
    text = "a small dog on the beach"
    answers = [f"{text}.", "A sunny day of joy", "A small dog is on a beach.", "A little dog on the beach."]
    result = judge_of().filter([Request(text, text, answers)])[0]
    assert result.reason is None and result.answer is None
    assert result.accepted[0][0] == "A little dog on the beach."
    assert result.accepted[0][1] is not None and result.accepted[0][1] > 0.8
    text = "a small dog on the wide beach"
    answers = ["A little dog on the broad beach", "the small dog is on a wide beach", "A tiny dog on the wide beach"]
    accepted = judge_of(preset="capable").filter([Request(text, text, [*answers, "nonsense", *answers])])[0].accepted
    assert sorted(one for one, _ in accepted) == sorted(answers)
    # The copy is nearest, and yet last.
    assert accepted[-1][0] == answers[1]
    answers = ["A little dog on the beach with a lot of small dog things", "A dog that is little on the beach"]
    result = judge_of().filter([Request("a small dog on the beach", "a small dog on the beach", answers)])[0]
    assert result.accepted[0][0] == answers[1]


SMALL = "paraclip_core.demo.filters"


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
    judge = AnswerFilter(FilterSpec(FilterOptions.model_validate({"preset": "small-model", **loose}), 2), Angles())
    assert judge.filter([Request(caption, source, [near, between])])[0].accepted[0][0] == between


def test_the_reason_is_that_of_the_answer_that_came_furthest() -> None:
    result = judge_of().filter([Request("two dogs", "two dogs", ["", "I cannot say", "three dogs"])])[0]
    assert (result.reason, result.answer, result.accepted) == ("changed_number", "three dogs", ())
    for preset in ("off", "capable", "small-model"):
        result = judge_of(preset=preset).filter([Request("a dog", "a dog", [])])[0]
        assert (result.reason, result.answer) == ("no_paraphrase", None)
    result = judge_of(preset="off").filter([Request("a dog", "a dog", ["", '"A dog."', "other", "A dog."])])[0]
    assert result.accepted == (("A dog.", None), ("other", None))
    assert judge_of(preset="off").filter([Request("a dog", "a dog", ["", "?"])])[0].reason == "empty"


@pytest.mark.parametrize("preset", ["off", "capable", "small-model"])
@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_no_text_breaks_a_result(preset: str, caption: str, source: str, answers: list[str]) -> None:
    result = judge_of(2, preset=preset).filter([Request(caption, source, answers)])[0]
    assert (result.reason is None) == bool(result.accepted)


def test_synonyms_make_further_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SMALL}.MIN_WORD_SIMILARITY", -1)
    options = FilterOptions(preset="small-model", min_similarity=-1)
    judge, request = (
        AnswerFilter(FilterSpec(options, 1), WordVectors()),
        Request("a red lamp", "a red lamp", ["a red lamp"]),
    )
    assert judge.filter([request])[0].reason == "echo"
    swapping = partial(variants, table={"lamp": ("lantern",)})
    assert [answer for answer, _ in judge.filter([request], swapping)[0].accepted] == ["a red lantern"]


def test_without_an_encoder_filters_on_meaning_pass() -> None:
    judge = AnswerFilter(FilterSpec(FilterOptions(preset="small-model"), 1))
    assert judge.filter([Request("a red lamp", "a red lamp", ["a red quux"])]) == [
        FilterResult((("a red quux", None),))
    ]


def test_the_digest_names_all_that_decides_a_result() -> None:
    off = FilterOptions(preset="off")
    base = FilterSpec(off, 1).digest
    assert len(base) == 16 and base == FilterSpec(FilterOptions.model_validate({"preset": False}), 1).digest
    others = [
        FilterSpec(off, 2).digest,
        FilterSpec(off, 1, (("a dog", "a puppy"),)).digest,
        FilterSpec(off, 1, context_length=64).digest,
        FilterSpec(off, 1, words="thesaurus").digest,
        FilterSpec(FilterOptions(preset="off", max_length_ratio=0.5), 1).digest,
    ]
    assert len({base, *others}) == 6
    # Where models compute changes no filter result.
    assert FilterSpec(FilterOptions(preset="off", device="auto"), 1).digest == base


CAPTION = "a small dog on the beach"


def explained(preset: str, answers: Sequence[str], **options: object) -> tuple[list[Candidate], list[str], str | None]:
    """Candidates, and the answers that the filter result accepts, or its reason."""
    filters = FilterOptions.model_validate({"preset": preset, "min_similarity": 0.3, **options})
    judge = AnswerFilter(FilterSpec(filters, 1), WordVectors())
    request = Request(CAPTION, CAPTION, answers)
    result = judge.filter([request])[0]
    return judge.explain([request])[0], [answer for answer, _ in result.accepted], result.reason


def failing(candidate: Candidate) -> list[str]:
    return [reason for reason, detail in candidate.results.items() if detail is not None]


def test_every_filter_is_asked_and_the_verdict_is_the_same() -> None:
    answers = [
        "A little dog is on the beach.",
        "I'm sorry, I cannot paraphrase <b>this</b> as it is so very long and says so many other things.",
        CAPTION,
        "zzz",
    ]
    candidates, accepted, _ = explained("capable", answers)
    assert [one.answer for one in candidates if one.accepted] == accepted == [answers[0]]
    filters = filters_of(FilterOptions(preset="capable"))
    assert list(candidates[0].results) == [*filters.text, *filters.meaning]
    assert candidates[0].similarity is not None and candidates[0].similarity > 0.8
    # The first alone would be the filter result's reason.
    assert {"refusal_or_preamble", "character_set"} <= {*failing(candidates[1])}
    assert "echo" in failing(candidates[2]) and failing(candidates[3])


def test_the_reason_of_a_verdict_is_the_first_filter_that_fails() -> None:
    for preset in ("off", "capable", "small-model"):
        for answer in ("", "...", CAPTION, "zzz", "a red cat near a green car and a bus, a train and a plane"):
            candidates, accepted, reason = explained(preset, [answer])
            assert ([*failing(candidates[0])] or [None])[0] == reason
            assert [one.answer for one in candidates if one.accepted] == accepted


def test_of_nothing_no_filter_but_the_first_is_asked() -> None:
    candidates, accepted, reason = explained("small-model", ["", "!?"])
    assert [list(one.results) for one in candidates] == [["empty"], ["empty"]]
    assert (accepted, reason) == ([], "empty")
    assert explained("capable", [])[0] == []


DATA = Path(__file__).parents[2] / "data"
SYNONYMS = {"dog": ("hound", "puppy"), "man": ("guy",), "woman": ("lady",), "beach": ("shore",), "street": ("road",)}
PINNED = {"7d0b61f3a9c24e58b1f60c2d94a8e735": "31c905f815cc5c7e793293dfd6b2761f"}


def test_a_changed_verdict_needs_another_version() -> None:
    """Stored filter results count as long as `GATES_VERSION` stays: where this digest changes, change both."""
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
        spec = FilterSpec(FilterOptions(preset=preset, min_similarity=0.5), step, FEW_SHOT[step].examples)
        judge = AnswerFilter(spec, WordVectors(), pieces=lambda text: len(whole.encode(text)) - 2)
        requests = [Request(caption, source, [answer]) for caption, source, answer in texts]
        for result in judge.filter(requests, partial(variants, table=SYNONYMS)):
            outcomes.append(json.dumps([[text for text, _ in result.accepted], result.reason]))
    assert {FILTERS_VERSION: text_hash(*outcomes).hex()} == PINNED
