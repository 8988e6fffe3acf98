"""Gates for answers of a small model, which copies words, breaks them and invents things.

Those on details of the image are in :mod:`paraclip_core.paraphrase.small_model.details`.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.meaning import Compare
from paraclip_core.paraphrase.pair import Pair, content_words, jaccard, stem, words
from paraclip_core.paraphrase.small_model.alignment import alignment, known_stems, new_words, unknown_words

__all__ = [
    "broken_words",
    "compared_words",
    "copied_instruction",
    "high_overlap",
    "invented_word",
    "lost_word",
    "repetition",
    "too_many_new_words",
]

# `a three-year-old` and `a two-story house` are well said.
_ARTICLE = re.compile(
    r"\ba (?:(?:two|three|four|five|six|seven|eight|nine|ten)\b(?!-| year)"
    r"|(?:people|children|men|women|houses|cattle)\b)",
    re.I,
)


def copied_instruction(pair: Pair, options: GateOptions) -> str | None:
    """Words leaked from the prompt's examples.

    A word of an example is fine where the input shares a content word with that example's own input (`kids` →
    `children`), and a leak where nothing in the input calls for it.
    """
    if not pair.examples:
        return None
    leaked = []
    examples = [_vocabulary(user, answer) for user, answer in pair.examples]
    for word in new_words(pair):
        owners = [user_stems for both, user_stems in examples if word in both]
        if owners and not any(known_stems(pair) & user_stems for user_stems in owners):
            leaked.append(word)
    return f"only the prompt's examples say {', '.join(leaked[:3])}" if leaked else None


def repetition(pair: Pair, options: GateOptions) -> str | None:
    """A content word comes more often than in the input."""
    before = Counter(stem(word) for word in content_words(pair.source_words))
    for word, count in Counter(stem(word) for word in content_words(pair.answer_words)).items():
        if count > max(1, before[word]):
            return f"{word!r} {count} times"
    return None


def broken_words(pair: Pair, options: GateOptions) -> str | None:
    """A new word is none that CLIP's vocabulary knows whole, or an article stands before a plural."""
    article = _ARTICLE.search(pair.answer)
    if article and article.group().lower() not in pair.source.lower():
        return f"{article.group()!r}"
    if pair.pieces is not None:
        for word in new_words(pair):
            if pair.pieces(word) > 1 and pair.pieces(stem(word)) > 1:
                return f"{word!r} is no common word"
    return None


def high_overlap(pair: Pair, options: GateOptions) -> str | None:
    """Nearly the same words as the input."""
    overlap = jaccard(pair.answer_words, pair.source_words)
    return f"word overlap {overlap:.2f}, at most {options.max_overlap:g}" if overlap > options.max_overlap else None


def too_many_new_words(pair: Pair, options: GateOptions) -> str | None:
    """More content words that the input lacks than a rewording needs; words for a known kind do not count."""
    new = unknown_words(pair)
    if len(new) <= options.max_new_content_words:
        return None
    return f"{len(new)} new words ({', '.join(new[:4])}), at most {options.max_new_content_words}"


def compared_words(pair: Pair) -> set[str]:
    """Single words that `invented_word` and `lost_word` ask the encoder about."""
    differ = alignment(pair)
    return {*differ.lost, *differ.new} if differ.lost or differ.unknown else set()


def invented_word(pair: Pair, options: GateOptions, compare: Compare) -> str | None:
    """A new word stands for no word of the caption that is gone."""
    least, differ = options.min_word_similarity, alignment(pair)
    for word in differ.unknown:
        nearest = max((compare.cosine(word, lost) for lost in differ.lost), default=0.0)
        if nearest < least:
            return f"{word!r} has cosine {nearest:.2f} with the nearest lost word, at least {least:g}"
    # A lost word may be said with two (`snowfield`, `snowy field`), and two are not needed twice.
    if len(differ.unknown) > len(differ.lost) + 1:
        return f"{len(differ.unknown)} new words ({', '.join(differ.unknown[:4])}) for {len(differ.lost)}"
    return None


def lost_word(pair: Pair, options: GateOptions, compare: Compare) -> str | None:
    """A word of the caption is gone, and no new word stands for it."""
    least, differ = options.min_word_similarity, alignment(pair)
    gone = [w for w in differ.lost if max((compare.cosine(w, new) for new in differ.new), default=0.0) < least]
    if len(gone) <= options.max_lost_words:
        return None
    return f"no word for {', '.join(gone[:4])}; at most {options.max_lost_words} may be lost"


@lru_cache(maxsize=256)
def _vocabulary(user: str, answer: str) -> tuple[frozenset[str], frozenset[str]]:
    """The content words of an example, and the stems of those of its own input."""
    of_user, of_answer = (content_words(words(text)) for text in (user, answer))
    return frozenset((*of_user, *of_answer)), frozenset(map(stem, of_user))
