"""Which captions are kept. Every row that is not gets one of the reason codes below and a detail.

=================  ====================================================================================
``not_utf8``       a field holds bytes that are not UTF-8 (or a lone surrogate from a JSON escape)
``wrong_type``     a field is a number, a list … where text was expected
``missing_field``  the row has no caption, or does not fit the file's columns
``bad_json``       the line is not JSON
``bad_member``     a tar member is too large or not what its name says
``too_long``       more than `max_chars` characters; nothing else looks at such a caption
``empty``          nothing is left after cleaning
``too_few_words``  fewer than `min_words` words, see :mod:`paraclip_core.captions.words`
``too_many_words`` more than `max_words` of them
``unknown_split``  the row's split is none of train, val, test and their usual other names
``image_conflict`` the image id already names another image, of this archive or another
``duplicate``      the same caption of the same image came before
``unreadable``     the whole file is bad (`source_row` is null); only with `on_error: skip`
=================  ====================================================================================
"""

from __future__ import annotations

from paraclip_core.captions.words import count_words, is_unspaced
from paraclip_core.config import DataOptions
from paraclip_core.errors import ConfigError

__all__ = ["REASONS", "CaptionFilter", "configured_split", "split_name"]

REASONS = (
    "not_utf8", "wrong_type", "missing_field", "bad_json", "bad_member", "too_long", "empty", "too_few_words",
    "too_many_words", "unknown_split", "image_conflict", "duplicate", "unreadable",
)  # fmt: skip

SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class CaptionFilter:
    """The filters that look at one caption alone."""

    def __init__(self, options: DataOptions) -> None:
        """Take the limits from the configuration."""
        self.max_chars = options.max_chars
        self._min, self._max = options.min_words, options.max_words
        self._unspaced = options.unspaced_scripts

    def length(self, raw: str) -> tuple[str, str]:
        """Reason and detail for a raw caption that is too long."""
        return "too_long", f"{len(raw)} characters, at most {self.max_chars}"

    def words(self, text: str) -> tuple[str, str] | None:
        """Reason and detail if a cleaned caption is empty or has too few or too many words, None if it is kept."""
        count = count_words(text, self._unspaced)
        if self._min <= count <= self._max and text:
            return None
        if not text:
            return "empty", "nothing is left after cleaning"
        if count < self._min:
            hint = "; see data.unspaced_scripts" if is_unspaced(text) and not self._unspaced else ""
            return "too_few_words", f"{count} words, at least {self._min}{hint}"
        return "too_many_words", f"{count} words, at most {self._max}"


def split_name(value: str) -> str | None:
    """train, val or test for any usual name of a split, None for anything else."""
    return SPLITS.get(value.strip().lower())


def configured_split(value: str | None) -> str:
    """The split of rows that do not say their own.

    Raises:
        ConfigError: the option names no usual split.
    """
    split = "train" if value is None else split_name(value)
    if split is None:
        raise ConfigError(f"data.sources[].split is {value!r}, expected train, val or test")
    return split
