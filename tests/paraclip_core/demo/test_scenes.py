"""What the demo's texts promise: a limited base vocabulary, few distinct captions, paraphrased queries in words of
their own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.demo.scenes import (
    COLORS,
    KINDS,
    MAX_WORDS,
    MIN_WORDS,
    PLACES,
    RELATIONS,
    SIZES,
    Concept,
    SceneImage,
    captions,
    plain_caption,
    plan,
    reword,
)

CONCEPTS: list[Concept] = [
    *KINDS.values(), *COLORS.values(), *SIZES.values(), *PLACES.values(), *RELATIONS.values()
]  # fmt: skip


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def images() -> list[SceneImage]:
    return list(plan(2000))


@pytest.fixture(scope="module")
def training_captions(images: list[SceneImage]) -> set[str]:
    return {text for image in images if image.split == "train" for text in captions(image)}


@pytest.fixture(scope="module")
def training_words(training_captions: set[str]) -> set[str]:
    return set().union(*(words(text) for text in training_captions))


def test_a_quarter_is_held_out_and_captions_are_few(images: list[SceneImage], training_captions: set[str]) -> None:
    train = [image for image in images if image.split == "train"]
    val = [image for image in images if image.split == "val"]
    assert (len(train), len(val)) == (1500, 500)
    assert len({image.scene for image in val}) == len(val)
    assert not {image.scene for image in val} & {image.scene for image in train}
    assert len({image.image_id for image in images}) == len(images)
    assert 600 <= len(training_captions) <= 900
    for image in images:
        pair = captions(image)
        assert len(set(pair)) == 2
        longest = MAX_WORDS if image.split == "train" else MAX_WORDS + 1
        assert all(MIN_WORDS <= len(text.split()) <= longest for text in pair)


def test_training_says_each_concept_with_its_base_word_only(training_words: set[str]) -> None:
    for concept in CONCEPTS:
        assert words(concept.word) <= training_words
        for other in concept.others:
            assert words(other) - training_words, f"{other!r} says {concept.word!r} in words that training has"


def test_a_paraphrased_query_renames_a_thing_and_is_no_training_caption(
    images: list[SceneImage], training_captions: set[str], training_words: set[str]
) -> None:
    renamed = {word for kind in KINDS.values() for other in kind.others for word in words(other)}
    paraphrased_queries = set()
    for image in images:
        if image.split == "val":
            text = reword(image)
            assert words(text) & renamed - training_words
            assert text not in training_captions
            assert text.lower().rstrip(".") not in {caption.lower().rstrip(".") for caption in training_captions}
            assert words(text) != words(plain_caption(image.scene))
            paraphrased_queries.add(text)
    assert len(paraphrased_queries) > 490


@given(count=st.integers(20, 60))
@settings(max_examples=40, deadline=None)
def test_a_plan_has_both_splits_and_depends_on_the_count_alone(count: int) -> None:
    images = list(plan(count))
    assert images == list(plan(count))
    assert len(images) == count
    assert {image.split for image in images} == {"train", "val"}
    for image in images:
        assert captions(image) == captions(image)
        assert reword(image) == reword(image)
