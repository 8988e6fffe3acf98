"""Rewordings against the rules of `query_pairs`, with CLIP's tokenizer and with others."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip.ragged import Ragged
from paraclip_core.evaluation.benchmarks.query_pairs import ARTICLES, FUNCTION_WORDS, RULES, TRAINED_ON
from paraclip_core.training.data import TEXTS, OwnImages, TrainingRows, make_batch
from paraclip_core.training.hard_negatives import vocabulary
from paraclip_core.training.options import RECIPES
from paraclip_core.training.rewordings import Rewordings
from tests.kit.clip_tokens import clip_tokens

WORDS = ("a", "An", "the", "The", "is", "in", "with", "and", "its", "without", "not", "dog", "dogs", "snow", "hat")
captions = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=12)


CLIP = vocabulary(clip_tokens, 77)


def lists(tokens: Ragged) -> list[list[int]]:
    return [tokens.values[a:b].tolist() for a, b in pairwise(tokens.offsets)]


def in_batch(maker: Rewordings, rows: TrainingRows, indices: np.ndarray, epoch: int) -> dict[str, Ragged]:
    return maker.in_batch(rows, indices, rows.texts["caption"].take(indices), rows.caption_numbers(indices), epoch)


@given(captions, st.integers(-3, 2**40), st.integers(0, 99))
def test_articles_or_all_function_words_are_left_out(texts: list[str], seed: int, epoch: int) -> None:
    made, changed = Rewordings(CLIP, seed).of(clip_tokens(texts), np.arange(len(texts)), epoch)
    for text, tokens, new in zip(texts, lists(made), changed, strict=True):
        words = text.lower().split()
        others = [[word for word in words if word not in left_out] for left_out in (ARTICLES, FUNCTION_WORDS)]
        possible = [other if other else words for other in others]
        assert tokens in [lists(clip_tokens([" ".join(other)]))[0] for other in possible]
        assert new == (len(tokens) - 2 < len(words))


def test_the_gate_leaves_out_what_training_has() -> None:
    text = "a dog with its hat is in the snow"
    made = {name: rule(text) for name, rule in RULES.items() if name in TRAINED_ON}
    drawn = {tuple(lists(Rewordings(CLIP, seed).of(clip_tokens([text]), np.arange(1), 0)[0])[0]) for seed in range(20)}
    assert drawn == {tuple(tokens) for tokens in lists(clip_tokens(list(made.values())))}


def test_an_epoch_draws_what_is_replaced_and_how() -> None:
    texts = [f"a dog with {n} hats" for n in range(400)]
    rows = TrainingRows(
        {kind: clip_tokens([f"{kind} {text}" if kind != "caption" else text for text in texts]) for kind in TEXTS}
    )
    indices, maker = np.arange(400), Rewordings(CLIP, 3)
    first, again, later = (in_batch(maker, rows, indices, epoch) for epoch in (0, 0, 1))
    assert all(lists(first[kind]) == lists(again[kind]) != lists(later[kind]) for kind in TEXTS[1:])
    stored = [lists(rows.texts[kind]) for kind in TEXTS[1:]]
    replaced = np.array(
        [[a != b for a, b in zip(lists(first[k]), own, strict=True)] for k, own in zip(TEXTS[1:], stored, strict=True)]
    )
    assert (replaced.sum(0) == 1).all() and 140 < replaced[0].sum() < 260
    chosen = [first[TEXTS[1 + place]] for place in replaced.argmax(0)]
    lengths = np.array([tokens.lengths[n] for n, tokens in enumerate(chosen)])
    full = rows.texts["caption"].lengths
    assert set(full - lengths) == {1, 2} and 140 < (full - lengths == 2).sum() < 260

    images = OwnImages(np.eye(400, dtype=np.float16), indices, indices)
    batch = make_batch(rows, indices, TEXTS, images.of_step(indices), reworded=first)
    assert lists(batch.texts("caption")) == lists(rows.texts["caption"])
    assert all(lists(batch.texts(kind)) == lists(first[kind]) for kind in TEXTS[1:])


def test_a_batch_does_not_matter() -> None:
    rows = TrainingRows({kind: clip_tokens([f"the {kind} {n}" for n in range(50)]) for kind in TEXTS})
    whole = in_batch(Rewordings(CLIP, 0), rows, np.arange(50), 2)
    part = in_batch(Rewordings(CLIP, 0), rows, np.array([41, 7]), 2)
    assert all(lists(part[kind]) == [lists(whole[kind])[n] for n in (41, 7)] for kind in TEXTS[1:])


def test_the_control_has_captions_alone() -> None:
    rows = TrainingRows({kind: clip_tokens([kind]) for kind in TEXTS})
    assert rows.paraphrased and not rows.as_captions().paraphrased


@pytest.mark.parametrize(
    ("begin", "mark", "end"), [([], " ", [1]), ([0], "", [1]), ([0], " ", [])], ids=["sentencepiece", "bert", "gpt"]
)
def test_other_tokenizers(begin: list[int], mark: str, end: list[int]) -> None:
    """A word within a text has a mark of the space before it; some tokenizers know capitals, some have no such mark."""
    ids: dict[str, int] = {}

    def tokenize(texts: list[str]) -> Ragged:
        def number(at: int, word: str) -> int:
            return ids.setdefault((mark if at else "") + word, 2 + len(ids))

        return Ragged.from_lists(
            [[*begin, *(number(*pair) for pair in enumerate(text.split())), *end] for text in texts]
        )

    maker = Rewordings(vocabulary(lambda texts: tokenize(list(texts)), 77), 0)
    made, changed = maker.of(tokenize(["The dog on a beach", "dog beach", "the"]), np.arange(3), 0)
    known = {number: word.strip() for word, number in ids.items()}
    inner = [[known[n] for n in tokens[len(begin) : len(tokens) - len(end)]] for tokens in lists(made)]
    assert inner[0] in (["dog", "beach"], ["dog", "on", "beach"]) and inner[1:] == [["dog", "beach"], ["the"]]
    assert changed.tolist() == [True, False, False]


def test_a_run_without_a_recipe_trains_on_them() -> None:
    """`contrast` alone has texts by rule, and is tried by default."""
    by_rule = {name for name, recipe in RECIPES.items() if recipe.losses.weights.hard_negatives}
    assert by_rule == {"contrast"} and RECIPES["contrast"].default
