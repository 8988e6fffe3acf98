"""Hard negatives against rules spelled out in Python, with CLIP's tokenizer and with others."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from paraclip_core.captions.pieces import CONTEXT_LENGTH
from paraclip_core.clip.encode import tokenize
from paraclip_core.clip.ragged import Ragged
from paraclip_core.training import hard_negatives
from paraclip_core.training.data import TrainingRows
from paraclip_core.training.hard_negatives import HardNegatives, Vocabulary, neighbor_table, vocabulary
from tests.kit.clip_tokens import clip_tokens

WORDS = ("a", "an", "some", "the", "is", "are", "not", "no", "there", "with", "without")
WORDS += ("dog", "cat", "men", "running", "on", "zebra")
CAPTIONS = ["a dog is running", "A dog is barking", "some men are not playing", "two men are not playing", "dogs run"]
CAPTIONS += ["zebra", "", "people and a sofa"]
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=24).map(" ".join), min_size=1, max_size=12)
seeds = st.integers(-3, 2**40)


@cache
def clip_words(length: int = CONTEXT_LENGTH) -> Vocabulary:
    return vocabulary(partial(clip_tokens, length=length), length)


def lists(tokens: Ragged) -> list[list[int]]:
    return [tokens.values[a:b].tolist() for a, b in pairwise(tokens.offsets)]


@cache
def symbols() -> dict[int, str]:
    return SimpleTokenizer().decoder


def read(tokens: Ragged) -> list[str]:
    return ["".join(symbols()[n] for n in ids[1:-1]).replace("</w>", " ").strip() for ids in lists(tokens)]


def rows_of(captions: Ragged, starts: np.ndarray | None = None) -> TrainingRows:
    return TrainingRows({"caption": captions}, starts=starts)


def maker(captions: Ragged, seed: int = 0, length: int = CONTEXT_LENGTH) -> HardNegatives:
    return HardNegatives(clip_words(length), neighbor_table(rows_of(captions)), seed)


def negations(caption: str, length: int = CONTEXT_LENGTH) -> set[str]:
    """All negations of a caption whose words are one token each, truncated."""
    words = caption.split()
    made = []
    for at, word in enumerate(words):
        if word in ("is", "are") and words[at + 1 : at + 2] != ["not"] and at + 1 < length - 2:
            made.append([*words[: at + 1], "not", *words[at + 1 :]])
        if word in ("a", "an", "some"):
            made.append([*words[:at], "no", *words[at + 1 :]])
        if at and word in ("with", "without"):
            made.append([*words[:at], "without" if word == "with" else "with", *words[at + 1 :]])
    made.append(["there", "is", "no", *words[words[:1] in (["a"], ["an"], ["some"]) :]])
    return {" ".join(one[: length - 2]) for one in made}


def swaps(caption: str, captions: list[str]) -> set[str]:
    """All swaps of a caption."""
    between: dict[tuple[str, str], set[str]] = {}
    for words in (f"< {each} >".split() for each in captions):
        for before, word, after in zip(words, words[1:], words[2:], strict=False):
            between.setdefault((before, after), set()).add(word)
    words = f"< {caption} >".split()
    return {
        " ".join([*words[1:at], other, *words[at + 1 : -1]])
        for at in range(1, len(words) - 1)
        for other in between.get((words[at - 1], words[at + 1]), set()) - {words[at]}
    }


@given(texts, seeds, st.integers(0, 9), st.sampled_from((8, 16, 77)))
def test_each_is_a_negation_or_a_swap_of_its_caption_whatever_the_others_of_the_batch(
    captions: list[str], seed: int, epoch: int, length: int
) -> None:
    captions = [" ".join(each.split()[: length - 2]) for each in captions]
    tokens = clip_tokens(captions, length)
    negatives = maker(tokens, seed, length)
    made = negatives.of(tokens, np.arange(len(tokens)), epoch)
    alone = [negatives.of(tokens.take([n]), np.array([n]), epoch) for n in range(len(tokens))]
    assert lists(made) == [lists(one)[0] for one in alone]
    assert made.values.dtype == tokens.values.dtype
    assert max(made.lengths) <= length
    for caption, ids, text in zip(captions, lists(made), read(made), strict=True):
        assert (ids[0], ids[-1]) == (49406, 49407) and {49406, 49407}.isdisjoint(ids[1:-1])
        assert text in negations(caption, length) | swaps(caption, captions)
        assert text != caption or caption.startswith("there is no there is no")


def test_all_of_a_captions_hard_negatives_come_and_each_kind_is_as_likely() -> None:
    tokens = clip_tokens(CAPTIONS)
    made, epochs = maker(tokens), 400
    drawn = [read(made.of(tokens, np.arange(len(tokens)), epoch)) for epoch in range(epochs)]
    of_first = [texts[0] for texts in drawn]
    counts = {text: of_first.count(text) for text in of_first}
    swap = "a dog is barking"
    assert set(counts) == {swap, "a dog is not running", "no dog is running", "there is no dog is running"}
    # Half of all are swaps, and the rules of negations share the other half, within five standard deviations.
    assert abs(counts.pop(swap) - epochs / 2) < 50
    assert all(abs(count - epochs / 6) < 38 for count in counts.values())
    seen = [set(texts) for texts in zip(*drawn, strict=True)]
    assert seen[3] == {"some men are not playing"}, "already negated: only the swap is possible"
    assert seen[4:7] == [{"there is no dogs run"}, {"there is no zebra"}, {"there is no"}]


def test_with_becomes_without_and_the_reverse() -> None:
    tokens = clip_tokens(["dogs with balls", "men without hats", "with cats running"])
    negatives = maker(tokens)
    drawn = [read(negatives.of(tokens, np.arange(3), epoch)) for epoch in range(60)]
    assert [set(texts) for texts in zip(*drawn, strict=True)] == [
        {"dogs without balls", "there is no dogs with balls"},
        {"men with hats", "there is no men without hats"},
        {"there is no with cats running"},
    ]


def test_they_stay_the_same_in_every_release() -> None:
    tokens = clip_tokens(CAPTIONS)
    few, numbers = tokens.take([0, 1, 2, 7]), np.array([40, 2**40, 3, 0])
    drawn = [read(maker(tokens, seed).of(few, numbers, epoch)) for seed, epoch in ((0, 0), (0, 1), (7, 1))]
    assert drawn == [
        ["a dog is barking", "a dog is running", "there is no men are not playing", "there is no people and a sofa"],
        ["no dog is running", "no dog is barking", "two men are not playing", "people and no sofa"],
        ["a dog is barking", "no dog is barking", "no men are not playing", "there is no people and a sofa"],
    ]


@given(texts, st.integers(1, 30))
def test_neighbors_are_those_of_the_captions_looked_at(captions: list[str], most: int) -> None:
    tokens = clip_tokens(captions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_negatives, "SWAP_CHUNK", 2)
        table = neighbor_table(rows_of(tokens), most)
    looked_at = range(len(captions)) if len(captions) <= most else [n * len(captions) // most for n in range(most)]
    seen = [lists(tokens)[number] for number in looked_at]
    between: dict[tuple[int, int], set[int]] = {}
    for before, token, after in (three for ids in seen for three in zip(ids, ids[1:], ids[2:], strict=False)):
        between.setdefault((before, after), set()).add(token)
    several = [(*place, token) for place, tokens in between.items() if len(tokens) > 1 for token in tokens]
    mask = (1 << 20) - 1
    assert [(key >> 40, key >> 20 & mask, key & mask) for key in table.tolist()] == sorted(several)


def test_a_caption_with_several_rows_is_looked_at_once() -> None:
    captions = clip_tokens(["a dog runs", "a dog runs", "a cat runs"])
    rows = rows_of(captions, np.array([0, 2, 3]))
    assert np.array_equal(neighbor_table(rows), neighbor_table(rows_of(captions.take([0, 2]))))
    assert rows.caption_numbers(np.array([2, 0, 1])).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("kind", "begin", "end", "longest"),
    [("clip", 1, 1, 77), ("clip-short", 1, 1, 16), ("roberta", 1, 1, 77), ("siglip", 0, 0, 31), ("mt5", 0, 1, 77)],
)
def test_texts_begin_and_end_as_the_tokenizer_has_it(
    kind: str, begin: int, end: int, longest: int, encoders: ModuleType, tmp_path: Path
) -> None:
    clip = encoders.model_of(kind, tmp_path)
    words = vocabulary(partial(tokenize, clip), clip.context_length)
    assert (words.begin, words.end, words.longest) == (begin, end, longest)
    captions = tokenize(clip, encoders.TEXTS)
    made = HardNegatives(words, neighbor_table(rows_of(captions)), 0)
    for epoch in range(6):
        drawn = made.of(captions, np.arange(len(captions)), epoch)
        for before, after in zip(lists(captions), lists(drawn), strict=True):
            assert after != before and len(after) <= words.longest
            assert after[:begin] == before[:begin] and after[len(after) - end :] == before[len(before) - end :]


def test_cased_words_at_the_beginning_and_within() -> None:
    """A tokenizer that marks spaces and keeps capitals, as RoBERTa's."""
    ids: dict[str, int] = {}

    def spaced(strings: list[str]) -> Ragged:
        marked = [["<s>", *text.strip().replace(" ", " \u0120").split(" "), "</s>"] for text in strings]
        return Ragged.from_lists([[ids.setdefault(p, len(ids)) for p in each if p] for each in marked])

    words = vocabulary(lambda strings: spaced(list(strings)), 400)
    captions = spaced(["A dog is here", "a cat", "Two cats see a dog", "Zebra"])
    made = HardNegatives(words, np.zeros(0, np.int64), 0)
    pieces = {number: piece for piece, number in ids.items()}
    seen: list[set[str]] = [set(), set(), set(), set()]
    for epoch in range(40):
        for texts, tokens in zip(seen, lists(made.of(captions, np.arange(4), epoch)), strict=True):
            texts.add("".join(pieces[n] for n in tokens[1:-1]).replace("\u0120", " "))
    assert seen[0] == {"No dog is here", "A dog is not here", "There is no dog is here"}
    assert seen[1] == {"no cat", "there is no cat"}
    assert seen[2] == {"Two cats see no dog", "there is noTwo cats see a dog"}
