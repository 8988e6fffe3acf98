"""Facts kept: what is lost is seen, whoever is asked beside it."""

from __future__ import annotations

import importlib.util

import pytest

from paraclip_core.paraphrase.facts import FEW, NEAR, Facts, facts_behind, facts_of, kept_words
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.sentence_encoder import PACKAGE, SentenceEncoder
from paraclip_core.paraphrase.words import content_words, words

pytestmark = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
DOG = "The black and brown dog carries a purple toy in the snow ."
LOST = {
    (DOG, "The dog in the snow carries a toy."): {"black", "brown", "purple"},
    (DOG, "In the snow, a purple toy is carried by a dog that is black and brown."): set(),
    ("Two dogs run on a sandy beach .", "Dogs run."): {"two", "sandy", "beach"},
    ("A man in a red jacket climbs a cliff .", "Nice weather today."): {"man", "red", "jacket", "climbs", "cliff"},
}


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_what_is_lost(encoder: SentenceEncoder) -> None:
    for (caption, _), lost, kept in zip(LOST, LOST.values(), kept_words([*LOST], encoder), strict=True):
        terms = content_words(words(caption))
        assert {word for word, found in zip(terms, kept, strict=True) if not found} == lost, caption


def test_a_pair_is_measured_as_if_alone(encoder: SentenceEncoder) -> None:
    together = kept_words([*LOST], encoder)
    assert [kept.tolist() for kept in together] == [kept_words([pair], encoder)[0].tolist() for pair in LOST]


def test_means_and_a_verdict_in_two_words(encoder: SentenceEncoder) -> None:
    facts = facts_of([*LOST, ("a", "dog")], encoder)
    assert facts is not None and facts.paraphrases == len(LOST) and facts.verdict == "drops facts"
    assert str(facts).startswith(f"drops facts: {facts.kept:.0%} of the captions' content words kept")
    assert Facts(FEW, NEAR, 1).verdict == "keeps facts" and Facts(1.0, NEAR + 0.01, 1).verdict == "copies words"
    assert facts_of([("a", "dog")], encoder) is None


@pytest.mark.parametrize("filters", [{"preset": "off"}, {"preset": "capable", "encoder": "elsewhere"}])
def test_only_the_calibrated_encoder_tells(filters: dict[str, str]) -> None:
    assert facts_behind(FilterOptions.model_validate(filters), [(DOG, DOG)]) is None
    assert facts_behind(FilterOptions(preset="capable"), []) is None
