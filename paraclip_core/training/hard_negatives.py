"""Hard negatives made by rule: for each caption of a batch a text that looks like it and means something else.

Training on paraphrases also draws together what only looks alike ("a dog is running", "a dog is not running"). Each
epoch draws one of two kinds for each caption:

- a negation: ``not`` after ``is`` or ``are``, ``no`` in place of ``a``, ``an`` or ``some``, ``without`` in place of
  ``with`` or the reverse, or ``there is no`` before the caption, in place of an article that it begins with;
- a swap: a token replaced by another one that stands between the same two tokens in another training caption.

A caption that allows only one kind gets that one, and ``there is no`` if it allows neither. Rows store tokens, not
texts, so the rules work on tokens. A hard negative is a pure function of the seed, the epoch, the caption's number and
the training captions, so that a resumed run makes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.ragged import Ragged
from paraclip_core.evaluation.benchmarks import query_pairs
from paraclip_core.training.data import CAPTION, TrainingRows, random_numbers

NEGATIVE_DRAWS = 2**129
"""Offset of Philox's numbers for hard negatives, far beyond those for paraphrases."""
SWAP_CAPTIONS = 500_000
"""Captions whose neighbors are looked at."""
SWAP_CHUNK = 1 << 16
"""Captions in memory at a time while neighbors are collected."""
TOKEN_BITS = 20
"""Bits of a token in a key of three; no vocabulary has a million tokens."""
LEFT_OUT = (*query_pairs.FUNCTION_WORDS, ".", ",")
VERBS, ARTICLES = ("is", "are"), ("a", "an", "some")
PREPOSITIONS = ("with", "without")
PHRASES = ("not", "no", "without", "with", "no", "No", "there is no", "There is no")
"""What negations insert: the first four within a text, the others at its beginning."""
NOT, NO, WITHOUT, WITH, OPENING_NO, OPENING_THERE = 0, 1, 2, 3, 4, 6
Ids: TypeAlias = NDArray[np.int64]
Draws: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True)
class Vocabulary:
    """The words of negations and of rewordings as a model's tokenizer writes them.

    Many tokenizers write a word otherwise at the beginning of a text: without the mark of a space, or with a capital.
    """

    verbs: Ids
    """``is`` and ``are`` within a text, as far as they are single tokens."""
    articles: Ids
    """``a``, ``an`` and ``some`` within a text."""
    prepositions: tuple[Ids, Ids]
    """``with`` and ``without`` within a text, each empty if it is several tokens."""
    opening: tuple[Ids, Ids]
    """The articles at the beginning of a text, in small letters and with a capital."""
    phrases: Ragged
    """Tokens of :data:`PHRASES`."""
    left_out: tuple[Ids, Ids]
    """What rewordings leave out, anywhere in a text: articles, and all words of :data:`LEFT_OUT`."""
    begin: int
    """Number of special tokens at the beginning of a text."""
    end: int
    """Number of special tokens at its end."""
    longest: int
    """Maximum number of tokens of a text, special ones included."""


def vocabulary(tokenize: Callable[[Sequence[str]], Ragged], context_length: int) -> Vocabulary:
    """Ask a tokenizer for these words; it truncates texts to at most `context_length` tokens."""

    def ids(texts: Sequence[str]) -> list[list[int]]:
        tokens = tokenize(texts)
        return [tokens.values[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]

    empty, probe, long, *opening = ids(["", "dog", "not " * (2 * context_length), *ARTICLES, *VERBS])
    samples = [empty, probe, *opening]
    begin = _common(samples)
    end = _common([sample[begin:][::-1] for sample in samples])

    def inner(text: Sequence[int]) -> list[int]:
        return list(text[begin : len(text) - end])

    def at_beginning(texts: Sequence[str]) -> list[list[int]]:
        return [inner(text) for text in ids(texts)]

    def within(texts: Sequence[str]) -> list[list[int]]:
        return [text[len(inner(probe)) :] for text in at_beginning([f"dog {text}" for text in texts])]

    def single(words: list[list[int]]) -> Ids:
        return np.array([word[0] for word in words if len(word) == 1], np.int64)

    def anywhere(words: Sequence[str]) -> Ids:
        forms = [*words, *(word.capitalize() for word in words)]
        return np.unique(np.concatenate([single(at_beginning(forms)), single(within(forms))]))

    return Vocabulary(
        verbs=single(within(VERBS)),
        articles=single(within(ARTICLES)),
        prepositions=(single(within(PREPOSITIONS[:1])), single(within(PREPOSITIONS[1:]))),
        opening=(single(at_beginning(ARTICLES)), single(at_beginning([word.capitalize() for word in ARTICLES]))),
        phrases=Ragged.from_lists([*within(PHRASES[:OPENING_NO]), *at_beginning(PHRASES[OPENING_NO:])], np.int64),
        left_out=(anywhere(query_pairs.ARTICLES), anywhere(LEFT_OUT)),
        begin=begin,
        end=end,
        longest=len(long),
    )


def _common(lists: Sequence[list[int]]) -> int:
    """Number of leading tokens that all lists share."""
    return next((n for n, tokens in enumerate(zip(*lists, strict=False)) if len({*tokens}) > 1), min(map(len, lists)))


def neighbor_table(rows: TrainingRows, captions: int = SWAP_CAPTIONS) -> Ids:
    """What stands between which tokens: sorted keys (see :func:`_keys`), int64 [triples], each once.

    Tokens without an alternative are left out. Of more than `captions` captions, that many are looked at, evenly
    spread.
    """
    number = np.arange(len(rows)) if len(rows) <= captions else np.arange(captions) * len(rows) // captions
    chosen = number if rows.starts is None else np.asarray(rows.starts[number])
    parts = [np.zeros(0, np.int64)]
    for start in range(0, len(chosen), SWAP_CHUNK):
        tokens = rows.texts[CAPTION].take(chosen[start : start + SWAP_CHUNK])
        parts.append(np.unique(_keys(tokens)[_between(tokens)]))
    keys = np.concatenate(parts)
    del parts
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) > 0]
    places = keys >> TOKEN_BITS
    same = places[1:] == places[:-1]
    several = np.zeros(len(keys), bool)
    several[1:] |= same
    several[:-1] |= same
    return keys[several]


def _keys(tokens: Ragged) -> Ids:
    """A number for each token from the tokens before and after it, and then itself, int64 [tokens]."""
    values = np.asarray(tokens.values, np.int64)
    before, after = np.zeros_like(values), np.zeros_like(values)
    before[1:], after[:-1] = values[:-1], values[1:]
    return (before << 2 * TOKEN_BITS) | (after << TOKEN_BITS) | values


def _between(tokens: Ragged) -> NDArray[np.bool_]:
    """Which tokens have one before and one after them in their text, bool [tokens]; no text is empty."""
    inside = np.ones(len(tokens.values), bool)
    inside[tokens.offsets[:-1]] = inside[tokens.offsets[1:] - 1] = False
    return inside


@dataclass(frozen=True)
class _Edits:
    """A change of each text: `removed` tokens from `at` on give way to others, int64 [n]."""

    at: Ids
    """Index among the tokens of all texts."""
    removed: Ids
    inserted: Ids
    """Number of the phrase that is inserted; after the phrases each text has a token of its own."""


@dataclass(frozen=True)
class HardNegatives:
    """Makes the hard negatives of a training."""

    words: Vocabulary
    neighbors: Ids
    """See :func:`neighbor_table`."""
    seed: int

    def of(self, captions: Ragged, numbers: Ids, epoch: int) -> Ragged:
        """A hard negative of each caption, [n], none of them empty; `numbers` are the captions' among all, int64 [n].

        Only where all rules fail, it equals its caption: for one as long as the context that repeats ``there is no``.
        """
        kind, rule, place, choice = random_numbers(numbers, self.seed, epoch, NEGATIVE_DRAWS, 4)
        negations, may_negate = self._negations(captions, rule, place)
        swaps, tokens, may_swap = self._swaps(captions, place, choice)
        swapped = may_swap & ((kind % np.uint64(2) == 1) | ~may_negate)
        edits = _Edits(
            np.where(swapped, swaps.at, negations.at),
            np.where(swapped, swaps.removed, negations.removed),
            np.where(swapped, swaps.inserted, negations.inserted),
        )
        return self._edited(captions, edits, tokens)

    def _negations(self, captions: Ragged, rule: Draws, place: Draws) -> tuple[_Edits, NDArray[np.bool_]]:
        """A negation of each caption, and whether it allows another one than ``there is no``."""
        words, values = self.words, np.asarray(captions.values, np.int64)
        first, stop = captions.offsets[:-1] + words.begin, captions.offsets[1:] - words.end
        position = np.arange(len(values)) - np.repeat(first, captions.lengths)
        inner = (position > 0) & (np.arange(len(values)) < np.repeat(stop, captions.lengths))
        # Beyond it, a token that is inserted would be cut off.
        room = position < words.longest - words.begin - words.end - 1
        negated = np.append(values[1:], -1) == words.phrases.values[0]
        verbs = inner & room & np.isin(values, words.verbs) & ~negated
        articles = inner & np.isin(values, words.articles)
        having, lacking = (inner & np.isin(values, ids) for ids in words.prepositions)
        opening = np.where(first < stop, np.append(values, -1)[first], -1)
        small, capital = (np.isin(opening, ids) for ids in words.opening)
        opens = small | capital
        articles[first[opens]] = True
        verb, has_verb = _nth(verbs, captions.offsets, place)
        article, has_article = _nth(articles, captions.offsets, place)
        preposition, has_preposition = _nth(having | lacking, captions.offsets, place)
        # Of the rules that a caption allows each is as likely; the last is always allowed.
        allowed = np.stack([has_verb, has_article, has_preposition, np.ones(len(captions), bool)])
        wanted = (rule % allowed.sum(0).astype(np.uint64)).astype(np.int64)
        number = (np.cumsum(allowed, axis=0) <= wanted).sum(0)
        rules = [number == 0, number == 1, number == 2]
        case = (capital & ~small).astype(np.int64)
        no = np.where(article == first, OPENING_NO + case, NO)
        other = np.where(np.append(lacking, False)[preposition], WITH, WITHOUT)
        edits = _Edits(
            at=np.select(rules, [verb + 1, article, preposition], first),
            removed=np.select(rules, [False, True, True], opens).astype(np.int64),
            inserted=np.select(rules, [NOT, no, other], OPENING_THERE + case),
        )
        return edits, has_verb | has_article | has_preposition

    def _swaps(self, captions: Ragged, place: Draws, choice: Draws) -> tuple[_Edits, Ids, NDArray[np.bool_]]:
        """A token of each caption to replace, the token in its place, and whether there is one."""
        keys = _keys(captions)
        low, high = (np.searchsorted(self.neighbors, (keys >> TOKEN_BITS) + end << TOKEN_BITS) for end in (0, 1))
        own, after = (np.searchsorted(self.neighbors, keys, side) for side in ("left", "right"))
        others = high - low - (after - own)
        at, found = _nth(_between(captions) & (others > 0), captions.offsets, place)
        chosen = low[at] + (choice % np.maximum(others[at], 1).astype(np.uint64)).astype(np.int64)
        chosen += (own[at] < after[at]) & (chosen >= own[at])
        tokens = np.append(self.neighbors, 0)[chosen] & ((1 << TOKEN_BITS) - 1)
        return _Edits(at, np.ones_like(at), len(PHRASES) + np.arange(len(captions))), tokens, found

    def _edited(self, captions: Ragged, edits: _Edits, tokens: Ids) -> Ragged:
        """The changed captions, truncated as the tokenizer does; `tokens` has each text's own one."""
        words, phrases, count = self.words, self.words.phrases, len(captions.values)
        values = np.concatenate([np.asarray(captions.values, np.int64), phrases.values, tokens])
        bounds = count + np.concatenate([phrases.offsets, phrases.offsets[-1] + 1 + np.arange(len(tokens))])
        stop = captions.offsets[1:] - words.end
        # Of each text the beginning, what is inserted, the rest, and the special tokens at the end.
        starts = np.stack([captions.offsets[:-1], bounds[edits.inserted], edits.at + edits.removed, stop])
        lengths = np.stack([edits.at, bounds[edits.inserted + 1], stop, captions.offsets[1:]]) - starts
        room = np.full(len(captions), words.longest - words.end)
        for part in lengths[:3]:
            np.minimum(part, room, out=part)
            room -= part
        pieces, counts = starts.T.ravel(), lengths.T.ravel()
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.sum(0))])
        return Ragged(values[np.repeat(pieces, counts) + within].astype(captions.values.dtype), offsets)


def _nth(mask: NDArray[np.bool_], offsets: Ids, draws: Draws) -> tuple[Ids, NDArray[np.bool_]]:
    """One of the marked tokens of each text, int64 [n] (0 if none is marked), and whether one is, bool [n]."""
    counted = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask)])
    before = counted[offsets[:-1]]
    counts = counted[offsets[1:]] - before
    wanted = before + (draws % np.maximum(counts, 1).astype(np.uint64)).astype(np.int64)
    return np.where(counts > 0, np.append(np.flatnonzero(mask), 0)[np.minimum(wanted, counted[-1])], 0), counts > 0
