"""Gates on the meaning of single words, with cosines that are given."""

from __future__ import annotations

from typing import Any, cast

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.meaning import Compare
from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.small_model.gates import compared_words, lost_word

OPTIONS = GateOptions(
    preset="small-model", min_similarity=0.7, min_caption_similarity=0.6, min_word_similarity=0.5, max_lost_words=0
)


class Cosines:
    """Cosines that are given, and which texts were asked about."""

    def __init__(self, cosines: dict[tuple[str, str], float], other: float = 0.0) -> None:
        self._cosines, self._other = cosines, other
        self.asked: set[str] = set()

    def cosine(self, one: str, two: str) -> float:
        self.asked.update((one, two))
        return self._cosines.get((one, two), self._cosines.get((two, one), self._other))


def first(pair: Pair, cosines: dict[tuple[str, str], float], other: float = 0.0) -> str | None:
    compare, gates = Cosines(cosines, other), gates_of(OPTIONS)
    meaning = gates.meaning.items()
    reason = next((name for name, gate in meaning if gate(pair, OPTIONS, cast(Compare, cast(Any, compare)))), None)
    assert compare.asked <= set(gates.compared(pair))
    return reason


def texts(caption: str, answer: str, step: int = 1, source: str | None = None) -> Pair:
    return Pair(caption, source or caption, answer, step)


def near(pair: Pair) -> dict[tuple[str, str], float]:
    return {(pair.source, pair.answer): 0.9, (pair.caption, pair.answer): 0.9}


def test_whole_texts_must_be_near() -> None:
    pair = texts("a dog", "the dog")
    assert first(pair, {}) == "low_similarity"
    assert first(pair, near(pair)) is None
    second = texts("a dog", "the dog", 2, "one dog")
    assert first(second, {("one dog", "the dog"): 0.9, ("a dog", "the dog"): 0.5}) == "low_caption_similarity"


def test_a_new_word_must_stand_for_a_lost_one() -> None:
    pair = texts("a cat in the sea", "a cat in the ocean")
    assert first(pair, near(pair) | {("sea", "ocean"): 0.8}) is None
    assert first(pair, near(pair) | {("sea", "ocean"): 0.4}) == "invented_word"
    added = texts("a rabbit under a cup", "a rabbit under a cup of coffee")
    # However near to a word that is still there.
    assert first(added, near(added) | {("cup", "coffee"): 0.9}) == "invented_word"


def test_one_lost_word_is_not_said_with_three() -> None:
    pair = texts("a bird by the car", "a bird by the vehicle near a parking garage")
    assert first(pair, near(pair), other=0.9) == "invented_word"


def test_a_word_of_the_caption_must_not_go() -> None:
    pair = texts("a blue ball and a fish on the street", "a blue ball on the street")
    assert first(pair, near(pair)) == "lost_word"
    lenient = OPTIONS.model_copy(update={"max_lost_words": 1})
    assert lost_word(pair, lenient, cast(Compare, cast(Any, Cosines({})))) is None


def test_words_are_compared_only_where_texts_differ() -> None:
    assert compared_words(texts("a dog", "the dog")) == set()
