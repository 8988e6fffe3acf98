"""Rows on their way from a source file into tables: their columns, batches, cleaning, those left out, counts of all.

Names of columns match whatever their case, blanks, hyphens and underscores: ``Image ID`` is ``image_id``. Of several
that match, a column of exactly the name is taken, or else the first.

Captions are cleaned as open_clip does before it tokenizes, equal to ``whitespace_clean(basic_clean(text))``: ftfy fixes
mojibake, curly quotes, ligatures, full-width letters and line breaks, removes terminal escapes and control characters
(NUL among them) and normalizes to NFC; HTML entities are unescaped twice; runs of white space become one blank. Tags
stay, and so does case.

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
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from typing import Any

import ftfy
import pyarrow as pa
import regex

from paraclip_core import tables
from paraclip_core.config import ColumnNames, DataOptions
from paraclip_core.errors import ConfigError, InputError

CAPTION = ("caption", "TEXT", "text", "title", "captions")
IMAGE = ("image_id", "image", "filename", "key", "URL", "url", "file_name", "image_path")
PATH = ("image", "filename", "file_name", "image_path")
LICENCE = ("licence", "license", "LICENCE", "LICENSE")
SPLIT = ("split",)
LONGEST_NAME = 100
"""Characters of a name that is compared otherwise than exactly."""
IMAGE_NAME = re.compile(r"(?i)(https?://|data:image/)\S+|\S[^\t]*\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d+)?")
"""A field that names an image: a URL, or a file name with or without the number of its caption."""
_NUMBERED = re.compile(r"caption\d+")
_IGNORED = re.compile(r"[\s_\-\ufeff]+")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used; None where a table has no such column."""

    captions: tuple[str, ...]
    """Each holds a caption of the row, or a list of them."""
    image: str | None = None
    """Becomes the image's id."""
    path: str | None = None
    """Becomes the image's name inside the archive of images."""
    licence: str | None = None
    split: str | None = None
    picture: str | None = None
    """Holds the images themselves, which only Parquet can."""

    @property
    def keys(self) -> tuple[str | None, str | None, str | None, str | None]:
        """The columns of image, path, split and licence, in the order in which a `Batcher` adds them."""
        return self.image, self.path, self.split, self.licence

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in (*self.captions, *self.keys, self.picture) if name is not None))


def plain_name(name: str) -> str:
    """A column's name without case, blanks, hyphens, underscores and byte order marks."""
    return _plain(name) if len(name) <= LONGEST_NAME else name


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return _IGNORED.sub("", name).casefold()


def match_column(names: Collection[str], *usual: str) -> str | None:
    """The column of the first usual name that is there exactly, or else of the first that a column is like."""
    if exact := next((name for name in usual if name in names), None):
        return exact
    alike = {plain_name(name): name for name in reversed(list(names))}
    return next((alike[plain_name(name)] for name in usual if plain_name(name) in alike), None)


def choose_columns(available: Sequence[str], chosen: ColumnNames) -> Columns | None:
    """The columns that the user names, or else those of the first usual names; None where none holds a caption.

    Captions without a usual name are all of ``caption_0``, ``caption_1``, ….
    """
    if chosen.captions:
        captions = [match_column(available, name) for name in chosen.captions]
    else:
        usual = match_column(available, *CAPTION)
        captions = [name for name in available if _NUMBERED.fullmatch(plain_name(name))] if usual is None else [usual]
    if not (captions := [name for name in captions if name is not None]):
        return None
    image = match_column(available, *([chosen.image] if chosen.image else IMAGE))
    return Columns(
        captions=tuple(dict.fromkeys(captions)),
        image=image,
        path=image if chosen.image else match_column(available, *PATH) or image,
        licence=match_column(available, *([chosen.license] if chosen.license else LICENCE)),
        split=match_column(available, *([chosen.split] if chosen.split else SPLIT)),
    )


def need_columns(available: Sequence[str], chosen: ColumnNames, where: str) -> Columns:
    """As :func:`choose_columns`; a named column that is absent, and a table without captions, raise InputError."""
    shown = ", ".join(repr(name[:60]) for name in available[:30]) or "none at all"
    for option, name in chosen.named():
        if match_column(available, name) is None:
            raise InputError(f"{where} has no column {name!r} (data.sources[].columns.{option}); it has {shown}")
    if (columns := choose_columns(available, chosen)) is None:
        raise InputError(
            f"{where} has none of the columns {', '.join(CAPTION)}; its columns are {shown}. Name the one with the "
            "caption, or a list of them, in data.sources[].columns.caption"
        )
    return columns


def has_caption(names: Sequence[str]) -> bool:
    """Whether a line of fields reads like a header: one of them, or several that are numbered, are usual captions."""
    numbered = [name for name in names if _NUMBERED.fullmatch(plain_name(name))]
    return match_column(names, *CAPTION) is not None or len(numbered) > 1


def reads_like_a_table(line: str) -> bool:
    """Whether a line is the header of captions and images, or a caption with a tab between it and its image's name."""
    if "\t" in line and any(IMAGE_NAME.fullmatch(field.strip()) for field in line.split("\t")):
        return True
    rows = ([name.strip().strip('"') for name in line.split(separator)] for separator in ",;\t|")
    return any(match_column(names, *CAPTION) and match_column(names, *IMAGE, *PATH) for names in rows)


BATCH_ROWS = 8192
BATCH_CHARS = 16 << 20
LONGEST_RECORD = 16 << 20
"""Bytes of a line or tar member beyond which it is rejected unread, so that no file can fill the memory."""
SHOWN_CHARS = 2000
MANY_LICENCES = 1000
"""Different licences that are counted by name; a column that was taken for licences by mistake may hold millions."""
TALLIES = ("rejected", "splits", "licences")
TEXTS = {
    "captions": "caption", "image_ids": "image", "image_paths": "image path", "splits": "split", "licences": "licence"
}  # fmt: skip
"""Columns of a batch with texts → what one of them is called."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is left out, and why."""

    row: int | None
    """Its number in the file, None where the whole file is meant."""
    reason: str
    """A short code, see :mod:`paraclip_core.captions.rows`."""
    detail: str
    """What was found and what was expected."""
    caption: str | None = None
    """The raw caption, where there is one; lone surrogates stand for bytes that are not UTF-8."""


@dataclass(slots=True)
class RowBatch:
    """Rows as they stand in a file, column by column; the lists are equally long. Captions are raw."""

    captions: list[str] = field(default_factory=list)
    image_ids: list[str | None] = field(default_factory=list)
    image_paths: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    licences: list[str | None] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def reject(self, n: int, reason: str, detail: str) -> None:
        """Note why row number `n` of the batch is left out; :meth:`keep` takes it out."""
        self.rejects.append(Reject(self.rows[n], reason, detail, self.captions[n]))

    def keep(self, mask: Sequence[bool]) -> None:
        if not all(mask):
            for name in (*TEXTS, "rows"):
                setattr(self, name, list(compress(getattr(self, name), mask)))

    def drop_undecodable(self) -> None:
        columns = [getattr(self, name) for name in TEXTS]
        if all(map(decodable, columns)):
            return
        good = []
        for n, row in enumerate(zip(*columns, strict=True)):
            bad = next((what for what, value in zip(TEXTS.values(), row, strict=True) if not decodable([value])), None)
            if bad is not None:
                self.reject(n, "not_utf8", f"the {bad} is not UTF-8")
            good.append(bad is None)
        self.keep(good)


class Batcher:
    """Collects single rows into batches of bounded size and turns rows with wrong types into rejects."""

    def __init__(self) -> None:
        self.batch = RowBatch()
        self._chars = 0

    def add(
        self,
        row: int,
        caption: object,
        image: object,
        path: object = None,
        split: object = None,
        licence: object = None,
    ) -> None:
        """Add one row; a list of captions becomes a row for each."""
        if isinstance(caption, list | tuple):
            if not caption:
                self.reject(row, "missing_field", "an empty list of captions, expected at least one")
            for item in caption:
                self.add(row, item, image, path, split, licence)
            return
        if caption is None:
            self.reject(row, "missing_field", "no caption, expected text")
            return
        if not isinstance(caption, str):
            self.reject(row, "wrong_type", f"a caption of type {type(caption).__name__}, expected text")
            return
        try:
            image_id, image_path = as_key(image, "image"), as_key(path, "image path")
            of_split, of_licence = as_key(split, "split"), as_key(licence, "licence")
        except TypeError as error:
            self.reject(row, "wrong_type", str(error), caption)
            return
        batch = self.batch
        batch.captions.append(caption)
        batch.image_ids.append(image_id)
        batch.image_paths.append(image_path)
        batch.splits.append(of_split)
        batch.licences.append(of_licence)
        batch.rows.append(row)
        self._chars += len(caption)

    def reject(self, row: int | None, reason: str, detail: str, caption: str | None = None) -> None:
        self.batch.rejects.append(Reject(row, reason, detail, caption))
        self._chars += len(caption or "")

    def full(self) -> Iterator[RowBatch]:
        """The batch, if it is large enough to be handed on."""
        if len(self.batch.captions) + len(self.batch.rejects) >= BATCH_ROWS or self._chars >= BATCH_CHARS:
            yield from self.rest()

    def rest(self) -> Iterator[RowBatch]:
        batch, self.batch, self._chars = self.batch, RowBatch(), 0
        if batch.captions or batch.rejects:
            yield batch


def as_key(value: object, what: str) -> str | None:
    """A short text field: text and whole numbers as text, nothing and blanks as None; a TypeError for all else."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{what} is of type {type(value).__name__}, expected text or a whole number")


def decodable(values: Iterable[str | None]) -> bool:
    """Whether all bytes of the texts were UTF-8; others were read as lone surrogates."""
    try:
        "".join(value for value in values if value is not None).encode()
    except UnicodeEncodeError:
        return False
    return True


def reject_batch(rejects: list[Reject], source: str) -> pa.RecordBatch:
    """The table of rejects (schema `tables.REJECTS`) of one file, sorted by row."""
    rejects.sort(key=lambda reject: -1 if reject.row is None else reject.row)
    columns = [
        pa.repeat(pa.scalar(source, pa.string()), len(rejects)),
        pa.array([reject.row for reject in rejects], pa.int64()),
        pa.array([reject.reason for reject in rejects], pa.string()),
        pa.array([_printable(reject.detail) for reject in rejects], pa.string()),
        pa.array([_printable(reject.caption) for reject in rejects], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=tables.REJECTS)


def _printable(text: str | None) -> str | None:
    """At most 2,000 characters, with U+FFFD for what is not UTF-8."""
    return None if text is None else _SURROGATE.sub("\ufffd", text[:SHOWN_CHARS])


@dataclass(frozen=True)
class Outcome:
    """What became of a batch of rows."""

    accepted: pa.RecordBatch
    """Schema `tables.CAPTIONS`."""
    rejects: pa.RecordBatch
    """Schema `tables.REJECTS`."""


@dataclass
class Counts:
    """Rows read and what became of them."""

    read: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def note(self, outcome: Outcome) -> None:
        self.read += outcome.accepted.num_rows + outcome.rejects.num_rows
        self.accepted += outcome.accepted.num_rows
        self.rejected.update(outcome.rejects.column("reason").to_pylist())
        self.splits.update(outcome.accepted.column("split").to_pylist())
        for licence, count in Counter(outcome.accepted.column("licence").to_pylist()).items():
            room = licence in self.licences or len(self.licences) < MANY_LICENCES
            self.licences[licence if room else "(others)"] += count

    def add(self, other: Counts) -> None:
        self.read += other.read
        self.accepted += other.accepted
        for name in TALLIES:
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        tallies = {name: dict(sorted(getattr(self, name).items())) for name in TALLIES}
        return {"read": self.read, "accepted": self.accepted, **tallies}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Counts:
        return cls(read=raw["read"], accepted=raw["accepted"], **{name: Counter(raw[name]) for name in TALLIES})


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
MOST_CHARACTERS = 2000

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
    # What the first three say of most captions, the pattern would say at four times the cost.
    if (text.isascii() and text.isprintable() and "&" not in text) or _NEEDS_CARE(text) is None:
        return " ".join(text.split())
    return " ".join(_unescape(_unescape(ftfy.fix_text(text, _CONFIG))).split())


def _unescape(text: str) -> str:
    return html.unescape(_ENDLESS.sub("\ufffd", text))


def cleaned(raw: str, options: DataOptions) -> tuple[str, tuple[str, str] | None]:
    """The cleaned caption, and reason and detail where a filter that looks at one caption alone stops it."""
    if len(raw) > MOST_CHARACTERS:
        return "", ("too_long", f"{len(raw)} characters, at most {MOST_CHARACTERS}")
    text = clean(raw)
    if not text:
        return text, ("empty", "nothing is left after cleaning")
    if (count := count_words(text)) < options.min_words:
        return text, ("too_few_words", f"{count} words, at least {options.min_words} (data.min_words)")
    if count > options.max_words:
        return text, ("too_many_words", f"{count} words, at most {options.max_words} (data.max_words)")
    return text, None


def listed_reasons(counts: Mapping[str, int]) -> str:
    """Rejected rows by reason, the most frequent first, each with the option that decides it."""
    ranked = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{reason} {n}" + (f" ({OPTIONS[reason]})" if reason in OPTIONS else "") for reason, n in ranked)


def bare_rows(split: str, without: int, rows: int) -> str:
    """What a user should hear of a split that is not trained on, of which some rows have no image."""
    return f"{without} of {rows} captions of split {split} have no image, so no benchmark of these captions uses them"


def count_words(text: str) -> int:
    """Words of a cleaned text: its blank-separated pieces.

    A piece in a script without blanks counts as a word for every two Chinese or Japanese characters, or four letters of
    Thai, Lao, Khmer or Burmese, begun ones included.
    """
    if text.isascii() or _RUN.search(text) is None:
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
