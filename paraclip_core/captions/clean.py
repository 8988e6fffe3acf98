"""Cleaning of captions, equal to open_clip's ``whitespace_clean(basic_clean(text))``, and which captions are kept.

open_clip cleans a text before it tokenizes it: ftfy mends mojibake, curly quotes, ligatures, full-width letters and
line breaks, removes terminal escapes and control characters (NUL among them) and normalizes to NFC; HTML entities are
unescaped twice; runs of white space become one blank. Tags stay, for they are text like any other. Case stays too:
lower-casing is the tokenizer's business.

Cleaning twice is not the same as cleaning once (``&amp;amp;amp;lt;`` loses two levels each time), so a caption is
cleaned exactly once, at ingest, and the tokenizer takes it as it is.

Every row that is not kept gets one of these reason codes and a detail:

=================  ====================================================================================
``not_utf8``       a field holds bytes that are not UTF-8 (or a lone surrogate from a JSON escape)
``wrong_type``     a field is a number, a list … where text was expected
``missing_field``  the row has no caption, or does not fit the file's columns
``bad_json``       the line is not JSON
``bad_member``     a tar member is too large or not what its name says
``too_long``       more than 2,000 characters; nothing else looks at such a caption
``empty``          nothing is left after cleaning
``too_few_words``  fewer than `min_words` words, see :func:`count_words`
``too_many_words`` more than `max_words` of them
``unknown_split``  the row's split is none of train, val, test and their usual other names
``no_image``       a training row names no image, while others do: it could be paraphrased and not trained on
``image_conflict`` the image id already names another image, of this archive or another
``duplicate``      the same caption of the same image came before
``unreadable``     the whole file is bad (`source_row` is null); only with `on_error: skip`
=================  ====================================================================================
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

import ftfy
import regex

from paraclip_core.config import DataOptions
from paraclip_core.errors import ConfigError

REASONS = (
    "not_utf8", "wrong_type", "missing_field", "bad_json", "bad_member", "too_long", "empty", "too_few_words",
    "too_many_words", "unknown_split", "no_image", "image_conflict", "duplicate", "unreadable",
)  # fmt: skip
MAX_CHARS = 2000
OPTIONS = {"too_few_words": "data.min_words", "too_many_words": "data.max_words"}
"""The option behind a reason."""

SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
EAST = r"\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
SOUTH_EAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
EAST_LETTERS, SOUTH_EAST_LETTERS = 2, 4
"""Characters of a word, about."""

_RUN = regex.compile(f"([{EAST}]+)|[{SOUTH_EAST}]+")
_OTHER = regex.compile(r"\w+")
# What can change under cleaning by more than its white space: anything but printable ASCII, blanks and line breaks,
# and an ampersand that could begin an entity. open_clip never finds an entity in "&" followed by white space.
_NEEDS_CARE = re.compile(r"[^\x20-\x7e\t\n\r]|&(?![ \t\n\r]|\Z)").search
# Python makes a number of no more than 4,300 digits, and no character has one as long.
_ENDLESS = re.compile(r"&#[0-9]{4000,};?")
_CONFIG = ftfy.TextFixerConfig(explain=False)


def clean(text: str) -> str:
    """Return `text` as open_clip's tokenizers clean it, case kept.

    Plain ASCII takes a path that skips ftfy and the HTML parser and gives the same text, about thirty times faster.
    """
    if _NEEDS_CARE(text) is None:
        return " ".join(text.split())
    return " ".join(_unescape(_unescape(ftfy.fix_text(text, _CONFIG))).split())


def _unescape(text: str) -> str:
    return html.unescape(_ENDLESS.sub("\ufffd", text))


def cleaned(raw: str, options: DataOptions) -> tuple[str, tuple[str, str] | None]:
    """The cleaned caption, and reason and detail where a filter that looks at one caption alone stops it."""
    if len(raw) > MAX_CHARS:
        return "", ("too_long", f"{len(raw)} characters, at most {MAX_CHARS}")
    text = clean(raw)
    count = count_words(text, options.unspaced_scripts)
    if not text:
        return text, ("empty", "nothing is left after cleaning")
    if count < options.min_words:
        hint = "; see data.unspaced_scripts" if is_unspaced(text) and not options.unspaced_scripts else ""
        return text, ("too_few_words", f"{count} words, at least {options.min_words} (data.min_words){hint}")
    if count > options.max_words:
        return text, ("too_many_words", f"{count} words, at most {options.max_words} (data.max_words)")
    return text, None


def listed_reasons(counts: Mapping[str, int]) -> str:
    """Rejected rows by reason, the most frequent first, each with the option that decides it."""
    ranked = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{reason} {n}" + (f" ({OPTIONS[reason]})" if reason in OPTIONS else "") for reason, n in ranked)


def is_unspaced(text: str) -> bool:
    """Whether a cleaned text has words that no blanks separate."""
    return not text.isascii() and _RUN.search(text) is not None


def count_words(text: str, unspaced: bool = False) -> int:
    """Words of a cleaned text: its blank-separated pieces.

    With `unspaced` a piece in a script without blanks counts as a word for every two Chinese or Japanese characters,
    or four letters of Thai, Lao, Khmer or Burmese, begun ones included.
    """
    if not unspaced or not is_unspaced(text):
        return text.count(" ") + 1
    return sum(_words_of(piece) for piece in text.split(" "))


def _words_of(piece: str) -> int:
    runs = list(_RUN.finditer(piece))
    if not runs:
        return 1
    lengths = [(len(run.group()), EAST_LETTERS if run.group(1) else SOUTH_EAST_LETTERS) for run in runs]
    return sum(-(-letters // word) for letters, word in lengths) + len(_OTHER.findall(_RUN.sub(" ", piece)))


def split_name(value: str) -> str | None:
    """train, val or test for any usual name of a split, None for anything else."""
    return SPLITS.get(value.strip().lower())


def configured_split(value: str | None) -> str:
    """The split of rows that do not say their own."""
    split = "train" if value is None else split_name(value)
    if split is None:
        raise ConfigError(f"data.sources[].split is {value!r}, expected train, val or test")
    return split
