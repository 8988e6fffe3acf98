"""Gates that compare meanings with a sentence encoder: whole texts, and the single words in which two texts differ."""

from __future__ import annotations

from collections.abc import Callable

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.pair import Pair

__all__ = ["MEANING_GATES", "Cosine", "compared_texts"]

Cosine = Callable[[str, str], float]
"""Cosine of two texts among those of `compared_texts`."""

MeaningGate = Callable[[Pair, GateOptions, Cosine], str | None]


def compared_texts(pair: Pair) -> set[str]:
    """Texts and words that the gates ask the encoder about."""
    found, whole = pair.alignment, {pair.caption, pair.source, pair.answer}
    return whole | {*found.lost, *found.new} if found.lost or found.unknown else whole


def low_similarity(pair: Pair, options: GateOptions, cosine: Cosine) -> str | None:
    """The answer as a whole is too far from its input."""
    found, least = cosine(pair.source, pair.answer), options.min_similarity
    return None if found >= least else f"cosine {found:.2f} with its input, at least {least:g}"


def low_caption_similarity(pair: Pair, options: GateOptions, cosine: Cosine) -> str | None:
    """Paraphrase 2 as a whole is too far from the caption."""
    found, least = cosine(pair.caption, pair.answer), options.min_caption_similarity
    return None if pair.step == 1 or found >= least else f"cosine {found:.2f} with the caption, at least {least:g}"


def invented_word(pair: Pair, options: GateOptions, cosine: Cosine) -> str | None:
    """A new word stands for no word of the caption that is gone."""
    least, differ = options.min_word_similarity, pair.alignment
    for word in differ.unknown:
        nearest = max((cosine(word, lost) for lost in differ.lost), default=0.0)
        if nearest < least:
            return f"{word!r} has cosine {nearest:.2f} with the nearest lost word, at least {least:g}"
    # A lost word may be said with two (`snowfield`, `snowy field`), and two are not needed twice.
    if len(differ.unknown) > len(differ.lost) + 1:
        return f"{len(differ.unknown)} new words ({', '.join(differ.unknown[:4])}) for {len(differ.lost)}"
    return None


def lost_word(pair: Pair, options: GateOptions, cosine: Cosine) -> str | None:
    """A word of the caption is gone, and no new word stands for it."""
    least, differ = options.min_word_similarity, pair.alignment
    gone = [w for w in differ.lost if max((cosine(w, new) for new in differ.new), default=0.0) < least]
    if len(gone) <= options.max_lost_words:
        return None
    return f"no word for {', '.join(gone[:4])}; at most {options.max_lost_words} may be lost"


MEANING_GATES: dict[str, MeaningGate] = {
    gate.__name__: gate for gate in (low_similarity, low_caption_similarity, invented_word, lost_word)
}
"""Gates that need the encoder, in the order in which they are asked, behind all text gates."""
