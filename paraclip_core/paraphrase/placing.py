"""Where a text puts its things: `a cup on a table` → the table is stood on.

Two texts that name the same things can still differ in where these are; sentence encoders hardly see it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from paraclip_core.paraphrase.lexicon import COLOURS, DETERMINERS, KINDS, PLACES, STOP_WORDS, stem, words

__all__ = ["DIRECTIONS", "Placed", "directions", "misplaced", "new_relation", "placed", "thing"]

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
    said = {_WAYS[word] for word in flat if word in _WAYS} & DIRECTIONS
    return said | {one or two for one, two in _SIDE.findall(text.lower())}


def placed(text: str) -> Placed:
    """The things of a text with how others are placed to them."""
    found: Placed = {}
    flat = _flat(text)
    for at, word in enumerate(flat):
        last = at + 1 == len(flat) or flat[at + 1] in STOP_WORDS or flat[at + 1] in _WAYS
        if word in STOP_WORDS or word in _WAYS or word in COLOURS or not last:
            continue
        begin = at
        while begin and flat[begin - 1] not in STOP_WORDS and flat[begin - 1] not in _WAYS:
            begin -= 1
        while begin and flat[begin - 1] in DETERMINERS:
            begin -= 1
        before = flat[begin - 1] if begin else ""
        way = _WAYS.get(before, "-" if before in STOP_WORDS or not before else "?")
        found.setdefault(thing(word), set()).add(way)
    return found


def misplaced(told: str, answer: str) -> str | None:
    """What the answer says of a thing's place that the told text does not; None where all is well."""
    before, after = placed(told), placed(answer)
    for noun, ways in after.items():
        known = before.get(noun)
        if known is None or stem(noun.rpartition("/")[2]) in _PLACES or "?" in known:
            continue
        for way in sorted(ways - known - _COMPANY - {"-", "?"}):
            return f"{way} {noun.rpartition('/')[2]}"
    return None


def new_relation(caption: str, answer: str) -> str | None:
    """A motion towards something, a wearing, or a company that only the answer tells of; None where all is well."""
    told, said = set(_flat(caption)), set(_flat(answer))
    for new, old in _NEW:
        if said & new and not told & old:
            return min(said & new)
    before, after = placed(caption), placed(answer)
    for noun, ways in after.items():
        lost = _LEFT.get(next(iter(ways)), ()) if len(ways) == 1 else ()
        if before.get(noun) in lost and stem(noun.rpartition("/")[2]) not in _PLACES:
            return f"{min(ways)} {noun.rpartition('/')[2]}"
    return None


def thing(noun: str) -> str:
    """What a noun names: its kind where a list knows it, else its stem."""
    return KINDS.get(noun) or stem(noun)


def _flat(text: str) -> Sequence[str]:
    # A comma ends a clause as a word that places nothing would.
    low = " ".join(words(_STOPS.sub(" then ", text)))
    for pattern, put in _PHRASES:
        low = pattern.sub(put, low)
    return low.split()
