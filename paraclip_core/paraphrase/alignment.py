"""Which words of a caption an answer lost, and which words it has in their stead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from paraclip_core.paraphrase.lexicon import (
    COLOURS,
    FIXED,
    KINDS,
    LIGHT_WORDS,
    NOISE_WORDS,
    NUMBERS,
    OPPOSITES,
    SPATIAL,
    content_words,
    joined,
    numeral,
    stem,
    words,
)
from paraclip_core.paraphrase.lexicon import family as family_of
from paraclip_core.paraphrase.prompts import tidy

__all__ = ["Alignment", "align", "broken_compound", "narrowed"]

# Sizes may go, and directions have a gate of their own.
_OTHERS = frozenset(
    word for one, two in OPPOSITES if (one, two) in SPATIAL or one & {"small", "old"} for word in one | two
)


@dataclass(frozen=True)
class Alignment:
    """The words in which a caption and an answer differ."""

    lost: tuple[str, ...]
    """Content words of the caption that the answer has in no form and by no word of the same family."""
    new: tuple[str, ...]
    """Content words of the answer that the caption has in no form; those of a known family come here, too."""
    unknown: tuple[str, ...]
    """Those of the new words that no list knows as another word for something in the caption."""


def align(caption: str, answer: str) -> Alignment:
    """Compare two texts word by word, without asking any model."""
    all_told, all_said = words(tidy(caption)), words(answer)
    told, said = content_words(all_told), content_words(all_said)
    told = [word for word in told if not any(char.isdigit() for char in word) and word not in NOISE_WORDS]
    told_stems, said_stems = {stem(word) for word in told}, {stem(word) for word in said}
    # What is written as one word here and as two there is the same.
    told_as_one, said_as_one = joined(all_told), joined(all_said)
    halves = {half for one in said_stems & told_as_one.keys() for half in told_as_one[one]}
    halves |= {half for one in told_stems & said_as_one.keys() for half in said_as_one[one]}
    told_stems |= told_as_one.keys()
    said_stems |= said_as_one.keys()
    told_families = {found for word in told if (found := family_of(word))}
    said_families = {found for word in said if (found := family_of(word))}
    lost = tuple(
        word
        for word in dict.fromkeys(told)
        if stem(word) not in said_stems
        and family_of(word) not in said_families
        and word not in LIGHT_WORDS
        and word not in _OTHERS
        and word not in NUMBERS
        and word not in halves
    )
    new = tuple(
        word
        for word in dict.fromkeys(said)
        # Numbers have a gate of their own.
        if stem(word) not in told_stems and word not in LIGHT_WORDS and word not in halves and numeral(word) is None
    )
    unknown = tuple(word for word in new if family_of(word) not in told_families and word not in COLOURS)
    return Alignment(lost, new, unknown)


# Endings of adjectives, and of verbs, before or behind which a noun may be said with another.
_ADJECTIVE = ("y", "ed", "en", "ous", "ful", "ish")
_VERB = ("s", "ing", "ed")


def broken_compound(caption: str, answer: str, differ: Alignment) -> str | None:
    """A half of a compound that was said with another word: `dirt bike` → `soil bike`, `jungle gym` → `jungle workout`.

    A word that may stand for another alone seldom may inside a compound. Colours, sizes, adjectives and verbs beside a
    word make no compound, as far as endings tell.
    """
    unknown, told, said = set(differ.unknown), words(tidy(caption)), words(answer)
    if (half := _half_of_a_fixed_one(told, said)) is not None:
        return half
    kept = {stem(word) for word in said}
    before = {stem(two): one for one, two in pairwise(told) if content_words([one, two]) == [one, two]}
    behind = {stem(one): two for one, two in pairwise(told) if content_words([one, two]) == [one, two]}
    for one, two in pairwise(said):
        if content_words([one, two]) != [one, two] or (one in unknown) == (two in unknown):
            continue
        if one in unknown:
            gone = before.get(stem(two))
            fine = two.endswith(_VERB) or _loose(gone)
        else:
            gone = behind.get(stem(one))
            fine = (
                _loose(one)
                or one.endswith(_ADJECTIVE)
                or two.endswith(_VERB[1:])
                or bool(gone and gone.endswith(_VERB))
            )
        new = one if one in unknown else two
        if gone and not fine and stem(gone) not in kept and gone[:4] != new[:4]:
            return f"{one} {two}"
    return None


def _half_of_a_fixed_one(told: Sequence[str], said: Sequence[str]) -> str | None:
    """An expression of the caption's of which the answer keeps some words, and not all."""
    before, after = [stem(word) for word in told], [stem(word) for word in said]
    for expression, stems in _FIXED:
        size = len(stems)
        if not any(before[at : at + size] == stems for at in range(len(before) - size + 1)):
            continue
        kept = [word for word in stems if word in after]
        if content_words(kept) and len(kept) < size:
            return f"half of {expression}"
    return None


_FIXED = tuple((" ".join(found), [stem(word) for word in found]) for found in FIXED)

# What a word may grow by and still mean the same, and longer forms of short words.
_GROWTH = ("ing", "ed", "er", "es", "land", "side", "like", "ful", "ness", "ment", "ion")
_LONG_FORMS = frozenset("photograph telephon gymnasium bathtub bedroom sunlight sunshin".split())  # noqa: SIM905
_COMPARED = frozenset("older younger bigger smaller larger taller shorter longer darker lighter higher lower".split())  # noqa: SIM905
_SOMEBODY = frozenset("person people someone somebody child children kid kids rider riders".split())  # noqa: SIM905


def narrowed(caption: str, answer: str, differ: Alignment) -> str | None:
    """A new word that holds a lost one and says more (`snow` → `snowstorm`), or the deed of a doer (`hiker` → `hikes`).

    A deed is fine where a new word says who does it (`a skater` → `a person on a skateboard`), and what a list knows is
    for `changed_kind` to judge.
    """
    fresh = set(words(answer)) - set(words(caption))
    somebody = any(word in _SOMEBODY or KINDS.get(word, "").startswith("person/") for word in fresh)
    somebody = somebody or any(word.endswith(("er", "ers")) for word in differ.unknown)
    for new in differ.unknown:
        for lost in differ.lost:
            if _grown(stem(lost), stem(new)) or (not somebody and _deed(lost, new)):
                return new
    return None


def _grown(lost: str, new: str) -> bool:
    if len(lost) < 3 or new in KINDS or new in _LONG_FORMS:
        return False
    if new.startswith(lost):
        more = new[len(lost) :]
        more = more[1:] if more[:1] == lost[-1] else more
        return len(more) >= 3 and not more.startswith(_GROWTH)
    return new.endswith(lost) and len(new) - len(lost) >= 3


def _deed(lost: str, new: str) -> bool:
    doer = lost.removesuffix("s")
    bare = stem(new)
    return (
        doer.endswith("er")
        and doer not in KINDS
        and doer not in _COMPARED
        and len(bare) >= 3
        and doer.removesuffix("er").startswith(bare)
        and not new.endswith(("er", "ers", "ing"))
    )


def _loose(word: str | None) -> bool:
    return word is None or word in COLOURS or word in _OTHERS or word in NUMBERS or word in LIGHT_WORDS
