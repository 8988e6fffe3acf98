"""The choice among answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.choose import NOT_JUDGED, Chooser, Request, Verdict
from paraclip_core.paraphrase.flood import FloodCounter
from paraclip_core.paraphrase.lexicon import words


class WordVectors:
    """Bag-of-letters vectors: similar texts are close, without a model."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        found = np.full((len(texts), 27), 1e-6, dtype=np.float32)
        for row, text in enumerate(texts):
            for char in "".join(words(text)):
                found[row, min(abs(ord(char) - ord("a")), 26)] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def chooser(step: int = 1, **options: object) -> Chooser:
    return Chooser(GateOptions.model_validate({"min_similarity": 0.3, **options}), step, encoder=WordVectors())


def test_the_faithful_answer_wins_over_the_copy_and_the_invention() -> None:
    request = Request(
        "a small dog on the beach",
        "a small dog on the beach",
        ["A small dog on the beach.", "A sunny day of joy", "A small dog is on a beach.", "A little dog on the beach."],
    )
    verdict = chooser().choose([request])[0]
    assert verdict.reason is None
    assert verdict.answer == "A little dog on the beach."
    assert verdict.similarity is not None
    assert verdict.similarity > 0.8


def test_step_2_must_stay_near_its_input_and_the_caption() -> None:
    caption, source = "a small dog is on the beach", "a little dog is on the beach"
    near, between = "the tiny dog lies on the beach", "a tiny dog lies on the beach"
    angles = {caption: 1.2, between: 0.6}

    class Angles:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            turned = np.array([angles.get(text, 0.0) for text in texts])
            return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)

    loose = {"min_similarity": -1, "min_caption_similarity": -1, "min_word_similarity": -1, "max_lost_words": 99}
    judge = Chooser(GateOptions.model_validate(loose), 2, encoder=Angles())
    verdict = judge.choose([Request(caption, source, [near, between])])[0]
    assert (verdict.answer, verdict.reason) == (between, None)


def test_a_shorter_answer_wins_over_a_long_one() -> None:
    answers = ["A little dog on the beach with a lot of small dog things", "A dog that is little on the beach"]
    verdict = chooser().choose([Request("a small dog on the beach", "a small dog on the beach", answers)])[0]
    assert verdict.answer == answers[1]


def test_the_reason_is_that_of_the_answer_that_came_furthest() -> None:
    request = Request("two dogs", "two dogs", ["", "I cannot say", "three dogs"])
    verdict = chooser().choose([request])[0]
    assert (verdict.reason, verdict.answer) == ("changed_number", "three dogs")


def test_no_answer_is_no_error() -> None:
    verdict = chooser().choose([Request("a dog", "a dog", [])])[0]
    assert (verdict.reason, verdict.answer) == ("no_paraphrase", None)


def test_low_similarity_with_input_and_caption() -> None:
    far = Request("zzz zzz zzz", "a small dog on the beach", ["A little dog on the beach."])
    assert chooser(2, min_caption_similarity=0.6).choose([far])[0].reason == "low_caption_similarity"
    assert chooser(1, min_caption_similarity=0.6).choose([far])[0].reason != "low_caption_similarity"
    assert chooser(1, min_similarity=0.999).choose([far])[0].reason == "low_similarity"


def test_preset_paper_takes_the_first_answer_that_says_something() -> None:
    verdict = chooser(preset="paper").choose([Request("a dog", "a dog", ["", '"A dog."', "other"])])[0]
    assert (verdict.answer, verdict.reason, verdict.similarity) == ("A dog.", None, None)


def test_a_flood_is_stopped_at_the_limit_and_an_other_answer_takes_its_place() -> None:
    judge = chooser(max_repeats=2)
    sources = [f"{name} of a small dog on the beach" for name in ("photo", "picture", "image", "photograph")]
    requests = [Request(source, source, ["A little dog on the beach."]) for source in sources]
    assert [v.reason for v in judge.choose(requests[:3])] == [None, None, "repeated_flood"]
    # The same input again is no further input.
    assert judge.choose(requests[3:])[0].reason == "repeated_flood"
    spare = Request(sources[3], sources[3], ["A little dog on the beach.", "A tiny dog is on a beach."])
    assert judge.choose([spare])[0].answer == "A tiny dog is on a beach."


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyzuvw")), max_size=40))
def test_the_flood_counter_counts_distinct_inputs(pairs: list[tuple[str, str]]) -> None:
    counter = FloodCounter()
    for answer, source in pairs:
        counter.add(answer, source)
    for answer in "abcd":
        assert counter.count(answer) == len({source for a, source in pairs if a == answer})


@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_no_text_breaks_the_choice(caption: str, source: str, answers: list[str]) -> None:
    verdict = chooser(2).choose([Request(caption, source, answers)])[0]
    assert (verdict.reason is None) <= (verdict.answer is not None)


def test_a_word_that_nothing_in_the_input_is_near_to_is_an_invention() -> None:
    request = Request("a small dog on the beach", "a small dog on the beach", ["A small dog on the beach with a quux."])
    assert chooser(min_word_similarity=0.9).choose([request])[0].reason == "invented_word"
    assert chooser(min_word_similarity=-1).choose([request])[0].reason is None


def test_what_is_known_is_not_judged_again_and_counts_as_before() -> None:
    fresh = chooser(max_repeats=1)
    texts = ["a small dog on the beach", "a small dog is on the beach", "a red car"]
    requests = [Request(text, text, ["A little dog on the beach."]) for text in texts]
    whole = fresh.choose(requests)
    assert [verdict.reason for verdict in whole] == [None, "repeated_flood", whole[2].reason]
    again = chooser(max_repeats=1)
    again.known = {texts[0]: whole[0], texts[2]: Verdict("anything", "echo")}
    assert again.choose(requests) == [whole[0], whole[1], Verdict("anything", "echo")]
    assert (again.flood.count("a little dog on the beach"), again.flood.count("anything")) == (1, 0)
    again.blind = True
    assert {verdict.reason for verdict in again.choose(requests)} == {NOT_JUDGED}
