"""Gates on details of an image that a rewording must keep: numbers, colours, kinds of things, places, denials."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.alignment import broken_compound, narrowed
from paraclip_core.paraphrase.lexicon import COLOURS, KINDS, OPPOSITES, STOP_WORDS, denies, numeral, stem, words
from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.placing import directions, misplaced, new_relation, thing
from paraclip_core.paraphrase.prompts import tidy

__all__ = [
    "changed_colour",
    "changed_compound",
    "changed_kind",
    "changed_negation",
    "changed_number",
    "changed_relation",
]

# Of these things a pair is one.
_PAIR = re.compile(
    r"\bpair of (?=(?:\w+ ){0,2}(?:(?:sun|eye)?glasses|goggles|binoculars|headphones|scissors|jeans|pants|trousers"
    r"|shorts|tights|leggings|overalls|pajamas|pyjamas)\b)",
    re.I,
)


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
    before = {COLOURS[word] for word in (*pair.source_words, *pair.caption_words) if word in COLOURS}
    for word in pair.answer_words:
        if word in COLOURS and COLOURS[word] not in before:
            return f"says {word}, which the input does not"
    gone = _told_colours(pair.caption_words) - _told_colours(pair.answer_words)
    if gone:
        return f"lost {min(gone)}"
    owned = _owned_colours(pair.source_words)
    named = {thing(word) for word in (*pair.source_words, *pair.caption_words)}
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
    known = {KINDS[word] for word in (*pair.source_words, *pair.caption_words) if word in KINDS}
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
    texts = pair.caption, pair.answer, pair.alignment
    found = broken_compound(*texts) or narrowed(*texts)
    return f"{found!r} is another thing" if found else None


def changed_negation(pair: Pair, options: GateOptions) -> str | None:
    """One of the two denies something and the other does not."""
    before, after = any(map(denies, pair.source_words)), any(map(denies, pair.answer_words))
    return "negation came or went" if before != after else None


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
