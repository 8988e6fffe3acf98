"""Filtering: the order of the answers that pass, the reason of those that do not, and what a filter result depends
on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filtering import (
    FILTERS_VERSION,
    AnswerFilter,
    FilterResult,
    FilterSpec,
    Request,
)
from paraclip_core.paraphrase.sentence_encoder import Encoder
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


PRESETS = ("off", "capable")
CAPTION = "a small dog on the beach"


def filter_of(preset: str, step: int = 1, encoder: Encoder | None = None, low: float = 0.3) -> AnswerFilter:
    """Filters that ask for this little similarity."""
    options = {"preset": preset, "min_similarity": low, "min_caption_similarity": low}
    return AnswerFilter(FilterSpec(FilterOptions.model_validate(options), step), encoder or WordVectors())


def filtered(answers: Sequence[str], text: str = CAPTION, preset: str = "capable") -> FilterResult:
    """The result of these answers to a caption."""
    return filter_of(preset).filter([Request(text, text, answers)])[0]


def test_all_that_pass_are_handed_on_the_best_first() -> None:
    near = "A little dog on the beach."
    result = filtered([f"{CAPTION}.", "A sunny day of joy", "A small dog is on a beach.", near])
    assert result.reason is None and result.answer is None
    assert result.accepted[0][0] == near
    assert result.accepted[0][1] is not None and result.accepted[0][1] > 0.8
    answers = ["A little dog on the broad beach", "the small dog is on a wide beach", "A tiny dog on the wide beach"]
    accepted = filtered([*answers, "nonsense", *answers], "a small dog on the wide beach", "capable").accepted
    assert sorted(one for one, _ in accepted) == sorted(answers)
    # The copy is nearest, and yet last.
    assert accepted[-1][0] == answers[1]
    short = "A dog that is little on the beach"
    assert filtered(["A little dog on the beach with a lot of small dog things", short]).accepted[0][0] == short


def test_step_2_must_stay_near_its_input_and_the_caption() -> None:
    caption, source = "a small dog is on the beach", "a little dog is on the beach"
    near, between = "the tiny dog lies on the beach", "a tiny dog lies on the beach"
    angles = {caption: 1.2, between: 0.6}

    class Angles:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            turned = np.array([angles.get(text, 0.0) for text in texts])
            return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)

    judge = filter_of("capable", 2, Angles(), -1)
    assert judge.filter([Request(caption, source, [near, between])])[0].accepted[0][0] == between


@pytest.mark.parametrize(
    ("preset", "answers", "reason", "answer"),
    [
        ("capable", ["", "I cannot say", "Two dogs!"], "echo", "Two dogs!"),
        *((preset, [], "no_paraphrase", None) for preset in PRESETS),
        ("off", ["", "?"], "empty", ""),
    ],
)
def test_the_reason_is_that_of_the_answer_that_came_furthest(
    preset: str, answers: list[str], reason: str, answer: str | None
) -> None:
    result = filtered(answers, "two dogs", preset)
    assert (result.reason, result.answer, result.accepted) == (reason, answer, ())


def test_the_preset_off_leaves_answers_in_their_order() -> None:
    result = filtered(["", '"A dog."', "other", "A dog."], "a dog", "off")
    assert result.accepted == (("A dog.", None), ("other", None))


@pytest.mark.parametrize("preset", PRESETS)
@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_no_text_breaks_a_result(preset: str, caption: str, source: str, answers: list[str]) -> None:
    result = filter_of(preset, 2).filter([Request(caption, source, answers)])[0]
    assert (result.reason is None) == bool(result.accepted)


def test_the_digest_names_all_that_decides_a_result() -> None:
    off = FilterOptions(preset="off")
    base = FilterSpec(off, 1).digest
    assert len(base) == 16 and base == FilterSpec(FilterOptions.model_validate({"preset": False}), 1).digest
    others = [
        FilterSpec(off, 2).digest,
        FilterSpec(FilterOptions(preset="off", max_length_ratio=0.5), 1).digest,
    ]
    assert len({base, *others}) == 3
    # Where models compute changes no filter result.
    assert FilterSpec(FilterOptions(preset="off", device="auto"), 1).digest == base


DATA = Path(__file__).parents[2] / "data"
PINNED = {"fdd45d7e85105c941ccda81a333b5e90": "8758c2f76e3e16189869779980cb0bf3"}


def test_a_changed_verdict_needs_another_version() -> None:
    """Stored filter results count as long as `FILTERS_VERSION` stays: where this digest changes, change both."""
    lines = [line for path in sorted(DATA.glob("*/*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    rows = [row for row in map(json.loads, lines) if "answer" in row and "caption" in row]
    texts = [(row["caption"], row.get("source") or row["caption"], row["answer"]) for row in rows]
    outcomes = []
    for step in (1, 2):
        judge = AnswerFilter(FilterSpec(FilterOptions(preset="capable", min_similarity=0.5), step), WordVectors())
        requests = [Request(caption, source, [answer]) for caption, source, answer in texts]
        for result in judge.filter(requests):
            outcomes.append(json.dumps([[text for text, _ in result.accepted], result.reason]))
    assert {FILTERS_VERSION: text_hash(*outcomes).hex()} == PINNED
