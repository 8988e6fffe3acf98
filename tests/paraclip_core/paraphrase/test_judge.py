"""Judging: the order of the answers that pass, the reason of those that do not, and what a verdict depends on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.judge import Accepted, Judge, Request, Verdict, gates_digest
from paraclip_core.paraphrase.pair import words


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
    return Judge(GateOptions.model_validate(chosen), step, encoder=WordVectors())


def test_the_faithful_answer_wins_over_the_copy_and_the_invention() -> None:
    text = "a small dog on the beach"
    answers = [f"{text}.", "A sunny day of joy", "A small dog is on a beach.", "A little dog on the beach."]
    verdict = judge_of().judge([Request(text, text, answers)])[0]
    assert verdict.reason is None and verdict.answer is None
    assert verdict.accepted[0].answer == "A little dog on the beach."
    assert verdict.accepted[0].similarity is not None and verdict.accepted[0].similarity > 0.8


def test_all_that_pass_are_handed_on_the_best_first() -> None:
    text = "a small dog on the wide beach"
    answers = ["A little dog on the broad beach", "the small dog is on a wide beach", "A tiny dog on the wide beach"]
    accepted = judge_of(preset="capable").judge([Request(text, text, [*answers, "nonsense", *answers])])[0].accepted
    assert sorted(one.answer for one in accepted) == sorted(answers)
    # The copy is nearest, and yet last.
    assert accepted[-1].answer == answers[1]


def test_step_2_must_stay_near_its_input_and_the_caption() -> None:
    caption, source = "a small dog is on the beach", "a little dog is on the beach"
    near, between = "the tiny dog lies on the beach", "a tiny dog lies on the beach"
    angles = {caption: 1.2, between: 0.6}

    class Angles:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            turned = np.array([angles.get(text, 0.0) for text in texts])
            return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)

    loose = {"min_similarity": -1, "min_caption_similarity": -1, "min_word_similarity": -1, "max_lost_words": 99}
    judge = Judge(GateOptions.model_validate({"preset": "small-model", **loose}), 2, encoder=Angles())
    assert judge.judge([Request(caption, source, [near, between])])[0].accepted[0].answer == between


def test_a_shorter_answer_wins_over_a_long_one() -> None:
    answers = ["A little dog on the beach with a lot of small dog things", "A dog that is little on the beach"]
    verdict = judge_of().judge([Request("a small dog on the beach", "a small dog on the beach", answers)])[0]
    assert verdict.accepted[0].answer == answers[1]


def test_the_reason_is_that_of_the_answer_that_came_furthest() -> None:
    verdict = judge_of().judge([Request("two dogs", "two dogs", ["", "I cannot say", "three dogs"])])[0]
    assert (verdict.reason, verdict.answer, verdict.accepted) == ("changed_number", "three dogs", ())


def test_no_answer_is_no_error() -> None:
    for preset in ("off", "capable", "small-model"):
        verdict = judge_of(preset=preset).judge([Request("a dog", "a dog", [])])[0]
        assert (verdict.reason, verdict.answer) == ("no_paraphrase", None)


def test_low_similarity_with_input_and_caption() -> None:
    far = Request("zzz zzz zzz", "a small dog on the beach", ["A little dog on the beach."])
    assert judge_of(2, min_caption_similarity=0.6).judge([far])[0].reason == "low_caption_similarity"
    near = Request(far.source, far.source, far.answers)
    verdict = judge_of(1, min_similarity=0.999).judge([near])[0]
    assert verdict.reason == "low_similarity" and verdict.similarity is not None


def test_preset_off_takes_the_answers_that_say_something_as_they_come() -> None:
    verdict = judge_of(preset="off").judge([Request("a dog", "a dog", ["", '"A dog."', "other", "A dog."])])[0]
    assert verdict.accepted == (Accepted("A dog.", None), Accepted("other", None))
    assert judge_of(preset="off").judge([Request("a dog", "a dog", ["", "?"])])[0].reason == "empty"


@pytest.mark.parametrize("preset", ["off", "capable", "small-model"])
@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_no_text_breaks_a_verdict(preset: str, caption: str, source: str, answers: list[str]) -> None:
    verdict = judge_of(2, preset=preset).judge([Request(caption, source, answers)])[0]
    assert (verdict.reason is None) == bool(verdict.accepted)


def test_a_word_that_nothing_in_the_input_is_near_to_is_an_invention() -> None:
    request = Request("a small dog on the beach", "a small dog on the beach", ["A small dog on the beach with a quux."])
    assert judge_of(min_word_similarity=0.9).judge([request])[0].reason == "invented_word"
    assert judge_of(min_word_similarity=-1).judge([request])[0].accepted


def test_a_verdict_depends_on_its_own_texts_alone() -> None:
    texts = [f"{color} {thing} on the beach" for color in ("a red", "a blue") for thing in ("dog", "cat", "boat")]
    answers = ["The red dog is on a beach", "A blue puppy on the beach", "a vessel in blue on the shore"]
    requests = [Request(text, text, answers) for text in texts]
    judge = judge_of(min_word_similarity=0.2)
    together = judge.judge(requests)
    assert together == [judge.judge([request])[0] for request in requests]
    assert together[::-1] == judge.judge(requests[::-1])


def test_synonyms_make_further_answers() -> None:
    options = GateOptions(preset="small-model", min_similarity=-1, min_word_similarity=-1)
    plain, with_synonyms = (
        Judge(options, 1, encoder=WordVectors(), synonyms=table).judge(
            [Request("a red lamp", "a red lamp", ["a red lamp"])]
        )
        for table in (None, {"lamp": ("lantern",)})
    )
    assert plain[0].reason == "echo"
    assert [one.answer for one in with_synonyms[0].accepted] == ["a red lantern"]


def test_without_an_encoder_gates_on_meaning_pass() -> None:
    judge = Judge(GateOptions(preset="small-model"), 1)
    assert judge.judge([Request("a red lamp", "a red lamp", ["a red quux"])]) == [
        Verdict((Accepted("a red quux", None),))
    ]


def test_the_digest_names_all_that_decides_a_verdict() -> None:
    off = GateOptions(preset="off")
    base = gates_digest(off, 1, (), 77)
    assert len(base) == 16 and base == gates_digest(GateOptions.model_validate({"preset": "paper"}), 1, (), 77)
    others = [
        gates_digest(off, 2, (), 77),
        gates_digest(off, 1, [("a dog", "a puppy")], 77),
        gates_digest(off, 1, (), 64),
        gates_digest(off, 1, (), 77, "thesaurus"),
        gates_digest(GateOptions(preset="off", max_overlap=0.5), 1, (), 77),
    ]
    assert len({base, *others}) == 6
    # What changes no verdict: where models compute, and floods, which are found later.
    assert gates_digest(GateOptions(preset="off", device="auto", max_repeats=3), 1, (), 77) == base
