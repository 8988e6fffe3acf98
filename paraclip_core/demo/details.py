"""Gates on details of an image that a rewording must keep: numbers, colors, kinds of things, places, denials.

Two texts that name the same things can still differ in where these are (`a cup on a table` → the table is stood on);
sentence encoders hardly see it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from paraclip_core.config import GateOptions
from paraclip_core.demo.gates import alignment, broken_compound, known_stems, narrowed
from paraclip_core.demo.lexicon import COLORS, DETERMINERS, KINDS, OPPOSITES, PLACES, numeral
from paraclip_core.paraphrase.parse import STOP_WORDS, Pair, denies, stem, words
from paraclip_core.paraphrase.prompts import tidy

# Of these things a pair is one.
_PAIR = re.compile(
    r"\bpair of (?=(?:\w+ ){0,2}(?:(?:sun|eye)?glasses|goggles|binoculars|headphones|scissors|jeans|pants|trousers"
    r"|shorts|tights|leggings|overalls|pajamas|pyjamas)\b)",
    re.I,
)


def changed_number(pair: Pair, options: GateOptions) -> str | None:
    """A number that the input does not say, or a counting word that is gone."""
    # `tidy` takes off what numbers a web image and not things in it: #4, DSC4702.
    source_words = words(_PAIR.sub("", tidy(pair.source)))
    before, after = _numbers(source_words), _numbers(words(_PAIR.sub("", pair.answer)))
    added = sorted(after - before - {1})
    if added:
        return f"says {added[0]}, which the input does not"
    # Long numbers in web captions are product codes and years, which a paraphrase may drop.
    spelled = _numbers([word for word in source_words if not word.isdigit()])
    lost = sorted(n for n in before - after if 2 <= n <= 12 or (n > 12 and n in spelled))
    return f"lost {lost[0]}" if lost else None


def _numbers(text_words: Sequence[str]) -> set[int]:
    """The numbers that words and digits say; `twenty five` is one."""
    numbers: list[int] = []
    tens = False
    for number in map(numeral, text_words):
        if number is not None and tens and 0 < number < 10:
            numbers[-1] += number
        elif number is not None:
            numbers.append(number)
        tens = number is not None and number in range(20, 100, 10)
    return set(numbers)


def changed_colour(pair: Pair, options: GateOptions) -> str | None:
    """A color that the input does not say, one of the caption that is gone, or one that went to another thing."""
    before = {COLORS[word] for word in (*pair.source_words, *pair.caption_words) if word in COLORS}
    for word in pair.answer_words:
        if word in COLORS and COLORS[word] not in before:
            return f"says {word}, which the input does not"
    gone = _color_counts(pair.caption_words) - _color_counts(pair.answer_words)
    return f"lost {min(gone)}" if gone else _moved_color(pair)


def _color_counts(text_words: Sequence[str]) -> Counter[str]:
    """How often each family of colors is said; `navy blue` is one."""
    colors = [COLORS.get(word) for word in text_words]
    return Counter(color for before, color in pairwise([None, *colors]) if color and color != before)


def _moved_color(pair: Pair) -> str | None:
    owned = _owned_colors(pair.source_words)
    named = {thing(word) for word in (*pair.source_words, *pair.caption_words)}
    for noun, colors in _owned_colors(pair.answer_words).items():
        for color in sorted(colors - owned.get(noun, set())):
            others = [other for other in owned if other != noun and color in owned[other]]
            if noun in owned:
                return f"{color} {_last(noun)} was {min(owned[noun])}"
            # `pink` of `a boy in pink in a field` belongs to the boy, and is no color of the field.
            if noun in named and (others or f"in {color}" in pair.source.lower()):
                return f"{color} belongs to {_last(others[0]) if others else 'somebody'}, not to {_last(noun)}"
    return None


def _owned_colors(text_words: Sequence[str]) -> dict[str, set[str]]:
    """Noun → color families that stand right before it, also several: `a black and white cat`."""
    owned: dict[str, set[str]] = {}
    colors: set[str] = set()
    for word, following in pairwise([*text_words, ""]):
        if word in COLORS:
            colors.add(COLORS[word])
        elif word != "and" or following not in COLORS:
            if colors and word not in STOP_WORDS:
                owned.setdefault(thing(word), set()).update(colors)
            colors = set()
    return owned


def changed_kind(pair: Pair, options: GateOptions) -> str | None:
    """A thing, animal or person that neither input nor caption names by any word."""
    kinds = {KINDS[word] for word in (*pair.source_words, *pair.caption_words) if word in KINDS}
    for word in pair.answer_words:
        if word in KINDS and KINDS[word] not in kinds and stem(word) not in known_stems(pair):
            return f"says {word}, which the input does not"
    return None


def changed_compound(pair: Pair, options: GateOptions) -> str | None:
    """One half of a compound is said with another word, or a word became half of one, or a doer became a deed."""
    texts = pair.caption, pair.answer, alignment(pair)
    wrong = broken_compound(*texts) or narrowed(*texts)
    return f"{wrong!r} is another thing" if wrong else None


def changed_negation(pair: Pair, options: GateOptions) -> str | None:
    """One of the two denies something and the other does not."""
    before, after = any(map(denies, pair.source_words)), any(map(denies, pair.answer_words))
    return "negation came or went" if before != after else None


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


Placed = dict[str, set[str]]
"""Thing → ways in which another is placed to it: `on`, `in`, `next`, `with`, `and`, a direction.

`-` stands for none, `?` for what follows a verb.
"""

_PHRASES = (
    (re.compile(r"\b(?:in|at) (?:the )?front of\b|\bahead of\b"), "front"),
    (re.compile(r"\bon (?:the )?top of\b"), "on"),
    (re.compile(r"\b(?:in|at|to) (?:the )?(?:rear|back) of\b"), "behind"),
    (re.compile(r"\b(?:(?:at|to|on) (?:the )?)?(left|right)(?: side)? of\b"), r"\1"),
    (re.compile(r"\b(?:next|close|adjacent) to\b|\bby the side of\b"), "next"),
)
_STOPS = re.compile(r"[,;:.!?()|/](?!\d)")
_SIDE = re.compile(r"\b(left|right)(?= (?:side )?of\b)|(?<=\bto )(?:the )?(left|right)\b")
_WAYS = {
    "on": "on", "onto": "on", "upon": "on", "atop": "on",
    "in": "in", "inside": "in", "into": "in", "within": "in",
    "above": "above", "over": "above",
    "below": "below", "under": "below", "beneath": "below", "underneath": "below",
    "behind": "behind", "front": "front", "left": "left", "right": "right",
    "next": "next", "beside": "next", "near": "next", "by": "next", "and": "and", "with": "with",
}  # fmt: skip

_PLACES = frozenset(map(stem, PLACES))

# Ways that say no more than that both are there; they are no place of their own, and may not stand for one.
_COMPANY = frozenset({"next", "with", "and"})
_LEFT = {"with": ({"on"},), "next": ({"on"}, {"in"})}

# Words that an answer may have only where the caption has them, or others that can mean the same.
_NEW = (
    (frozenset({"toward", "towards"}), frozenset({"toward", "towards", "to", "at"})),
    (frozenset({"before"}), frozenset({"before", "front"})),
    (
        frozenset({"wearing", "wears"}),
        frozenset({"wearing", "wears", "wear", "wore", "dressed", "in", "with", "on", "has"}),
    ),
)

DIRECTIONS = frozenset({"above", "below", "behind", "front", "left", "right"})
"""Ways that a rewording must keep."""


def directions(text: str, loose: bool = False) -> set[str]:
    """Directions that the text says with words that mean nothing else; `loose`: or that may mean it, as `over`."""
    flat = [word for word in _flat(text) if word not in ("left", "right") and (loose or word != "over")]
    ways = {_WAYS[word] for word in flat if word in _WAYS} & DIRECTIONS
    return ways | {one or two for one, two in _SIDE.findall(text.lower())}


def placed(text: str) -> Placed:
    """The things of a text with how others are placed to them."""
    places: Placed = {}
    flat = _flat(text)
    for at, word in enumerate(flat):
        last = at + 1 == len(flat) or flat[at + 1] in STOP_WORDS or flat[at + 1] in _WAYS
        if word in STOP_WORDS or word in _WAYS or word in COLORS or not last:
            continue
        begin = at
        while begin and flat[begin - 1] not in STOP_WORDS and flat[begin - 1] not in _WAYS:
            begin -= 1
        while begin and flat[begin - 1] in DETERMINERS:
            begin -= 1
        before = flat[begin - 1] if begin else ""
        way = _WAYS.get(before, "-" if before in STOP_WORDS or not before else "?")
        places.setdefault(thing(word), set()).add(way)
    return places


def misplaced(source: str, answer: str) -> str | None:
    """What the answer says of a thing's place that the source does not; None where all is well."""
    before, after = placed(source), placed(answer)
    for noun, ways in after.items():
        ways_before = before.get(noun)
        if ways_before is None or stem(_last(noun)) in _PLACES or "?" in ways_before:
            continue
        for way in sorted(ways - ways_before - _COMPANY - {"-", "?"}):
            return f"{way} {_last(noun)}"
    return None


def new_relation(caption: str, answer: str) -> str | None:
    """A motion towards something, a wearing, or a company that only the answer tells of; None where all is well."""
    words_before, words_after = set(_flat(caption)), set(_flat(answer))
    for new, old in _NEW:
        if words_after & new and not words_before & old:
            return min(words_after & new)
    before, after = placed(caption), placed(answer)
    for noun, ways in after.items():
        lost = _LEFT.get(next(iter(ways)), ()) if len(ways) == 1 else ()
        if before.get(noun) in lost and stem(_last(noun)) not in _PLACES:
            return f"{min(ways)} {_last(noun)}"
    return None


def thing(noun: str) -> str:
    """What a noun names: its kind where a list knows it, else its stem."""
    return KINDS.get(noun) or stem(noun)


def _last(thing_name: str) -> str:
    return thing_name.rpartition("/")[2]


def _flat(text: str) -> Sequence[str]:
    # A comma ends a clause as a word that places nothing would.
    low = " ".join(words(_STOPS.sub(" then ", text)))
    for pattern, word in _PHRASES:
        low = pattern.sub(word, low)
    return low.split()
