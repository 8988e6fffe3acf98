"""Gates: each looks at one answer and says nothing, or why it is not good enough, with a figure.

A gate is a function `(Pair, GateOptions) -> str | None`; its reason code is its name in :data:`TEXT_GATES`. The
gates that need sentence embeddings or counts over many answers are applied in :mod:`paraclip_core.paraphrase.choose`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.alignment import Alignment, align, broken_compound, narrowed
from paraclip_core.paraphrase.lexicon import (
    COLOURS,
    KINDS,
    LIGHT_WORDS,
    OPPOSITES,
    STOP_WORDS,
    content_words,
    denies,
    family,
    joined,
    numeral,
    stem,
    words,
)
from paraclip_core.paraphrase.placing import directions, misplaced, new_relation, thing
from paraclip_core.paraphrase.prompts import tidy

__all__ = ["REASONS", "TEXT_GATES", "Pair", "first_failure", "jaccard"]

Gate = Callable[["Pair", GateOptions], str | None]
Pieces = Callable[[str], int]

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|apologi[sz]e)|as an ai\b|language model"
    r"|i don't have|please provide|unfortunately,? i)\b",
    re.I,
)
_PREAMBLE = re.compile(
    r"\b(?:paraphras\w*|rephras\w*|rewrit\w*|rewritten|the (?:original|given|following|above) (?:text|sentence|caption)"
    r"|in other words|this (?:sentence|caption|text|image) (?:is|shows|describes)|synonyms?)\b|=>|:$",
    re.I,
)
_MARKUP = re.compile(r"</?[a-z!]|https?:|www\.|\{|\}|\||\\|<|>|\.(?:jpe?g|png|gif|html?|php)\b", re.I)
# What chat templates of any family begin and end turns with; no sentence about an image holds it.
_TEMPLATE = re.compile(r"<[|/]?[a-z_|]|\[/?[A-Z_]{3,}\]|<<|\|>")
# `a three-year-old` and `a two-story house` are well said.
_ARTICLE = re.compile(
    r"\ba (?:(?:two|three|four|five|six|seven|eight|nine|ten)\b(?!-| year)"
    r"|(?:people|children|men|women|houses|cattle)\b)",
    re.I,
)
# Of these things a pair is one.
_PAIR = re.compile(
    r"\bpair of (?=(?:\w+ ){0,2}(?:(?:sun|eye)?glasses|goggles|binoculars|headphones|scissors|jeans|pants|trousers"
    r"|shorts|tights|leggings|overalls|pajamas|pyjamas)\b)",
    re.I,
)


@dataclass(frozen=True)
class Pair:
    """An answer with what it was made from."""

    caption: str
    """The caption at the root."""
    source: str
    """The text that was to be paraphrased: the caption at step 1, paraphrase 1 at step 2."""
    answer: str
    """The parsed answer."""
    step: int
    examples: Sequence[tuple[str, str]] = ()
    """The prompt's examples as (user, assistant)."""
    pieces: Pieces | None = None
    """Number of CLIP tokens of a text without start and end token; None: such gates pass."""
    context_length: int = 77

    @cached_property
    def source_words(self) -> list[str]:
        """Words of the input."""
        return words(self.source)

    @cached_property
    def answer_words(self) -> list[str]:
        """Words of the answer."""
        return words(self.answer)

    @cached_property
    def known_stems(self) -> frozenset[str]:
        """Stems of everything that input and caption say, also of two words written as one."""
        caption = words(self.caption)
        alone = {stem(word) for word in (*self.source_words, *caption)}
        return frozenset(alone | joined(self.source_words).keys() | joined(caption).keys())

    @cached_property
    def new_words(self) -> list[str]:
        """Content words of the answer that neither input nor caption holds in any form, each once; numbers aside."""
        found = dict.fromkeys(content_words(self.answer_words))
        return [word for word in found if stem(word) not in self.known_stems and numeral(word) is None]

    @cached_property
    def unknown_words(self) -> list[str]:
        """New words that no list knows as another word for something in input or caption."""
        known = {found for word in (*self.source_words, *words(self.caption)) if (found := family(word))}
        return [word for word in self.new_words if word not in LIGHT_WORDS and family(word) not in known]

    @cached_property
    def alignment(self) -> Alignment:
        """The words in which caption and answer differ."""
        return align(self.caption, self.answer)

    @property
    def content_overlap(self) -> float:
        """Jaccard overlap of the stems of the content words: with the input by one third, with the caption by two.

        Articles and word forms are no novelty, and step 2 shall not go back to the caption's words.
        """
        said = [stem(word) for word in content_words(self.answer_words)]
        with_source, with_caption = (
            jaccard([stem(word) for word in content_words(told)], said)
            for told in (self.source_words, words(self.caption))
        )
        return (with_source + 2 * with_caption) / 3


def jaccard(one: Sequence[str], two: Sequence[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two word lists taken as sets; 1 for two empty ones."""
    a, b = set(one), set(two)
    return len(a & b) / len(a | b) if a or b else 1.0


def empty(pair: Pair, options: GateOptions) -> str | None:
    """The answer holds no word."""
    return None if pair.answer_words else "no word in the answer"


def refusal_or_preamble(pair: Pair, options: GateOptions) -> str | None:
    """The answer speaks about the task instead of doing it."""
    for pattern in (_REFUSAL, _PREAMBLE):
        found = pattern.search(pair.answer)
        if found and found.group().lower() not in pair.source.lower():
            return f"says {found.group()!r}"
    return None


def copied_instruction(pair: Pair, options: GateOptions) -> str | None:
    """Words leaked from the prompt's examples.

    A word of an example is fine where the input shares a content word with that example's own input (`kids` →
    `children`), and a leak where nothing in the input calls for it.
    """
    if not pair.examples:
        return None
    leaked = []
    for word in pair.new_words:
        owners = [user for user, answer in pair.examples if word in _vocabulary(user) or word in _vocabulary(answer)]
        if owners and not any(pair.known_stems & _vocabulary_stems(user) for user in owners):
            leaked.append(word)
    return f"only the prompt's examples say {', '.join(leaked[:3])}" if leaked else None


def echo(pair: Pair, options: GateOptions) -> str | None:
    """The answer is the input again, or at step 2 the caption."""
    if pair.answer_words == pair.source_words:
        return "repeats its input"
    if pair.step == 2 and pair.answer_words == words(pair.caption):
        return "repeats the caption"
    return None


def character_set(pair: Pair, options: GateOptions) -> str | None:
    """The answer holds a chat template's token, or markup, control characters or a script that its input does not."""
    if found := _TEMPLATE.search(pair.answer):
        return f"template token {found.group()!r}"
    found = _MARKUP.search(pair.answer)
    if found and found.group().lower() not in pair.source.lower():
        return f"markup {found.group()!r}"
    for char in pair.answer:
        if not char.isascii() and not char.isspace() and char not in pair.source and not _latin(char):
            return f"character U+{ord(char):04X}"
    return None


def length_ratio(pair: Pair, options: GateOptions) -> str | None:
    """The answer is much shorter or longer than its input, in words."""
    found, base = len(pair.answer_words), len(pair.source_words)
    if found < options.min_length_ratio * base:
        return f"{found} words for {base}, at least {options.min_length_ratio:g} times as many are wanted"
    if found > options.max_length_ratio * base + 1:
        return f"{found} words for {base}, at most {options.max_length_ratio:g} times as many and one are wanted"
    return None


def too_long(pair: Pair, options: GateOptions) -> str | None:
    """The answer does not fit into the text tower's context."""
    room = pair.context_length - 2
    # A token covers at least one byte, so most answers need no count.
    if pair.pieces is None or len(pair.answer.encode("utf-8", "surrogatepass")) <= room:
        return None
    found = pair.pieces(pair.answer)
    return f"{found} tokens, {room} fit" if found > room else None


def repetition(pair: Pair, options: GateOptions) -> str | None:
    """A content word comes more often than in the input."""
    before = Counter(stem(word) for word in content_words(pair.source_words))
    for word, count in Counter(stem(word) for word in content_words(pair.answer_words)).items():
        if count > max(1, before[word]):
            return f"{word!r} {count} times"
    return None


def broken_words(pair: Pair, options: GateOptions) -> str | None:
    """A new word is none that CLIP's vocabulary knows whole, or an article stands before a plural."""
    found = _ARTICLE.search(pair.answer)
    if found and found.group().lower() not in pair.source.lower():
        return f"{found.group()!r}"
    if pair.pieces is not None:
        for word in pair.new_words:
            if pair.pieces(word) > 1 and pair.pieces(stem(word)) > 1:
                return f"{word!r} is no common word"
    return None


def high_overlap(pair: Pair, options: GateOptions) -> str | None:
    """Nearly the same words as the input."""
    found = jaccard(pair.answer_words, pair.source_words)
    return f"word overlap {found:.2f}, at most {options.max_overlap:g}" if found > options.max_overlap else None


def too_many_new_words(pair: Pair, options: GateOptions) -> str | None:
    """More content words that the input lacks than a rewording needs; words for a known kind do not count."""
    new = pair.unknown_words
    if len(new) <= options.max_new_content_words:
        return None
    return f"{len(new)} new words ({', '.join(new[:4])}), at most {options.max_new_content_words}"


def changed_number(pair: Pair, options: GateOptions) -> str | None:
    """A number that the input does not say, or a counting word that is gone."""
    # `tidy` takes off what numbers a web image and not things in it: #4, DSC4702.
    told = words(_PAIR.sub("", tidy(pair.source)))
    before, after = _numbers(told), _numbers(words(_PAIR.sub("", pair.answer)))
    added = sorted(after - before - {1})
    if added:
        return f"says {added[0]}, which the input does not"
    # Long numbers in web captions are product codes and years, which a paraphrase may drop.
    spelled = _numbers([word for word in told if not word.isdigit()])
    lost = sorted(n for n in before - after if 2 <= n <= 12 or (n > 12 and n in spelled))
    return f"lost {lost[0]}" if lost else None


def changed_colour(pair: Pair, options: GateOptions) -> str | None:
    """A colour that the input does not say, one of the caption that is gone, or one that went to another thing."""
    before = {COLOURS[word] for word in (*pair.source_words, *words(pair.caption)) if word in COLOURS}
    for word in pair.answer_words:
        if word in COLOURS and COLOURS[word] not in before:
            return f"says {word}, which the input does not"
    gone = _told_colours(words(pair.caption)) - _told_colours(pair.answer_words)
    if gone:
        return f"lost {min(gone)}"
    owned = _owned_colours(pair.source_words)
    named = {thing(word) for word in (*pair.source_words, *words(pair.caption))}
    for noun, colours in _owned_colours(pair.answer_words).items():
        for colour in sorted(colours - owned.get(noun, set())):
            others = [other for other in owned if other != noun and colour in owned[other]]
            if noun in owned:
                return f"{colour} {_last(noun)} was {min(owned[noun])}"
            # `pink` of `a boy in pink in a field` belongs to the boy, and is no colour of the field.
            if noun in named and (others or f"in {colour}" in pair.source.lower()):
                return f"{colour} belongs to {_last(others[0]) if others else 'somebody'}, not to {_last(noun)}"
    return None


def changed_kind(pair: Pair, options: GateOptions) -> str | None:
    """A thing, animal or person that neither input nor caption names by any word."""
    known = {KINDS[word] for word in (*pair.source_words, *words(pair.caption)) if word in KINDS}
    for word in pair.answer_words:
        if word in KINDS and KINDS[word] not in known and stem(word) not in pair.known_stems:
            return f"says {word}, which the input does not"
    return None


def changed_relation(pair: Pair, options: GateOptions) -> str | None:
    """Left for right, large for small, on for above; or a direction of the caption that is lost, or a new one."""
    if lost := directions(pair.caption) - directions(pair.answer, loose=True):
        return f"{min(lost)} is lost"
    if new := directions(pair.answer) - directions(pair.caption, loose=True) - directions(pair.source, loose=True):
        return f"says {min(new)}, which the caption does not"
    for text in dict.fromkeys((pair.caption, pair.source)):
        if (wrong := misplaced(text, pair.answer)) is not None:
            return f"says {wrong}, which the input does not"
    if (wrong := new_relation(pair.caption, pair.answer)) is not None:
        return f"says {wrong}, which the caption does not"
    before, after = set(pair.source_words), set(pair.answer_words)
    for one, two in OPPOSITES:
        for side, other in ((one, two), (two, one)):
            if after & side and before & other and not before & side:
                return f"{min(after & side)} for {min(before & other)}"
    return None


def changed_compound(pair: Pair, options: GateOptions) -> str | None:
    """One half of a compound is said with another word, or a word became half of one, or a doer became a deed."""
    found = broken_compound(pair.caption, pair.answer) or narrowed(pair.caption, pair.answer)
    return f"{found!r} is another thing" if found else None


def changed_negation(pair: Pair, options: GateOptions) -> str | None:
    """One of the two denies something and the other does not."""
    before, after = any(map(denies, pair.source_words)), any(map(denies, pair.answer_words))
    return "negation came or went" if before != after else None


TEXT_GATES: dict[str, Gate] = {
    gate.__name__: gate
    for gate in (
        empty, refusal_or_preamble, copied_instruction, character_set, length_ratio, too_long, echo, repetition,
        broken_words, changed_negation, changed_number, changed_colour, changed_kind, changed_relation,
        changed_compound, too_many_new_words, high_overlap,
    )
}  # fmt: skip
"""Gates that need the texts only, in the order in which they are asked."""

REASONS = (
    *TEXT_GATES,
    "low_similarity",
    "low_caption_similarity",
    "invented_word",
    "lost_word",
    "repeated_flood",
    "no_paraphrase",
)
"""Every reason code."""


def first_failure(pair: Pair, options: GateOptions) -> tuple[str, str] | None:
    """Reason code and detail of the first text gate that the answer fails; preset `paper` asks only for a word."""
    gates = {"empty": empty} if options.preset == "paper" else TEXT_GATES
    for reason, gate in gates.items():
        detail = gate(pair, options)
        if detail is not None:
            return reason, detail
    return None


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(content_words(words(text)))


def _vocabulary_stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in _vocabulary(text))


def _latin(char: str) -> bool:
    return unicodedata.name(char, "").startswith("LATIN") or unicodedata.category(char) in ("Pd", "Pi", "Pf", "Po")


def _numbers(found: Sequence[str]) -> set[int]:
    """The numbers that words and digits say; `twenty five` is one."""
    said: list[int] = []
    tens = False
    for number in map(numeral, found):
        if number is not None and tens and 0 < number < 10:
            said[-1] += number
        elif number is not None:
            said.append(number)
        tens = number is not None and number in range(20, 100, 10)
    return set(said)


def _told_colours(found: Sequence[str]) -> Counter[str]:
    """How often each family of colours is said; `navy blue` is one."""
    said = [COLOURS.get(word) for word in found]
    return Counter(here for before, here in pairwise([None, *said]) if here and here != before)


def _owned_colours(found: Sequence[str]) -> dict[str, set[str]]:
    """Noun → colour families that stand right before it, also several: `a black and white cat`."""
    owned: dict[str, set[str]] = {}
    colours: set[str] = set()
    for word, following in pairwise([*found, ""]):
        if word in COLOURS:
            colours.add(COLOURS[word])
        elif word != "and" or following not in COLOURS:
            if colours and word not in STOP_WORDS:
                owned.setdefault(thing(word), set()).update(colours)
            colours = set()
    return owned


def _last(thing: str) -> str:
    return thing.rpartition("/")[2]
