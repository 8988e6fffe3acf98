"""COCO and Flickr30k orders: accuracy against a plain loop, the shuffling rules, and the formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import WordEncoder
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks.caption_order import cleaned, shuffled
from paraclip_core.evaluation.run import prepare

BENCHMARK = BenchmarkOptions(name="order", kind="caption_order", path="x")


def write(folder: Path, rows: object, name: str = "coco_karpathy_test.json") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for image in ("red_dog", "old_cat_tree"):
        (folder / "images" / f"{image}.jpg").touch()
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def test_options_of_the_file_against_a_plain_loop(tmp_path: Path) -> None:
    rows = [
        {"image": "val2014/red_dog.jpg", "caption_options": ["A red dog!", "dog a blue", "the dog", "red a dog ."]},
        {"image": "val2014/old_cat_tree.jpg", "caption_options": ["the sea", "old cat", "a cat"]},
        {"image": "val2014/old_cat_tree.jpg", "caption_options": ["Old cat tree", "old cat tree.", "OLD CAT TREE"]},
    ]
    measured = prepare(BENCHMARK, write(tmp_path, rows)).measure(encoder := WordEncoder())
    hits = []
    for row in rows:
        image = encoder.images(Path(), [row["image"]])[0].astype(float)
        right, *wrong = [cleaned(text, 30) for text in row["caption_options"]]
        scores = [image @ encoder.texts([text])[0].astype(float) for text in wrong if text != right]
        hits.append(image @ encoder.texts([right])[0].astype(float) > max(scores, default=-np.inf))
    assert measured.metrics["accuracy"] == pytest.approx(100 * np.mean(hits)) and set(hits) == {True, False}
    assert (measured.notes["captions_without_rival"], measured.notes["reordered_by"]) == (1, "the file")


def test_captions_are_shuffled_by_a_seed(tmp_path: Path) -> None:
    rows = [
        {"image": "red_dog.jpg", "caption": ["a red dog runs over the wet grass", "dog"]},
        {"image": "old_cat_tree.jpg", "caption": ["an old cat sits in a tall tree today"]},
    ]
    path = write(tmp_path, rows)
    measured = prepare(BENCHMARK, path).measure(WordEncoder())
    assert measured.notes["captions"] == 3 and measured.notes["captions_without_rival"] == 1
    assert measured.notes["reordered_by"] == "the rules within_trigrams, trigrams with seed 0"
    # A bag of words tells no order, so only the caption of one word counts.
    assert measured.metrics["accuracy"] == pytest.approx(100 / 3)
    one = BENCHMARK.model_copy(update={"options": {"seed": 1, "rules": ["trigrams"]}})
    assert prepare(one, path).measure(WordEncoder()).notes["reordered_by"] == "the rules trigrams with seed 1"


def test_captions_in_other_formats(tmp_path: Path) -> None:
    images = [
        {"filename": f"{name}.jpg", "split": "test", "sentences": [{"raw": "a b c d"}]}
        for name in ("red_dog", "old_cat_tree")
    ]
    measured = prepare(BENCHMARK, write(tmp_path, {"images": images}, "dataset_x.json")).measure(WordEncoder())
    assert measured.notes["captions"] == 2


@given(st.text("abc d.,'", max_size=60), st.sampled_from(["within_trigrams", "trigrams"]), st.integers(0, 99))
def test_shuffling_moves_words_within_its_rule(caption: str, rule: str, seed: int) -> None:
    words, moved = shuffled(caption, rule, -1).split(), shuffled(caption, rule, seed).split()  # pyright: ignore
    assert sorted(moved) == sorted(words) and shuffled(caption, rule, seed).split() == moved  # pyright: ignore
    threes = lambda given: [sorted(given[n : n + 3]) for n in range(0, len(given), 3)]  # noqa: E731
    if rule == "within_trigrams":
        assert threes(moved) == threes(words)


@given(st.text(max_size=80))
def test_cleaned_texts_have_no_marks_and_few_words(caption: str) -> None:
    text = cleaned(caption, 5)
    assert not set(text) & set('.!"()*#:;~') and len(text.split()) <= 5 and cleaned(text, 5) == text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "red_dog.jpg", "caption_options": ["a"]}], r"row 1: caption_options is \['a'\], expected two"),
        (
            [{"image": "red_dog.jpg", "caption_options": ["a", "b"]}, {"image": "red_dog.jpg", "caption": "a"}],
            r"some rows have caption_options and some have not",
        ),
        ([{"image": "gone.jpg", "caption": "a b"}], r"images of .*coco_karpathy_test\.json are missing"),
        ([], r"has no rows"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        prepare(BENCHMARK, write(tmp_path, rows))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"options\.rule: Extra inputs.*caption_order takes seed, rules, max_words"):
        BenchmarkOptions(name="x", kind="caption_order", path="x", options={"rule": "trigrams"})
