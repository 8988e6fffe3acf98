"""Which columns of a table hold captions, images, licenses and splits.

Column names match regardless of case, spaces, hyphens and underscores: ``Image ID`` is ``image_id``. Of several
matches, the exact name is taken, or else the first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import field_validator

from paraclip_core.errors import InputError
from paraclip_core.options import Options

CAPTION = ("caption", "TEXT", "text", "title", "captions", "query")
IMAGE = ("image_id", "image", "filename", "key", "URL", "url", "file_name", "image_path")
PATH = ("image", "filename", "file_name", "image_path")
LICENSE = ("licence", "license", "LICENCE", "LICENSE")
SPLIT = ("split",)
COUNT = ("count",)
LONGEST_NAME = 100
"""Maximum characters of a name that is compared inexactly."""
IMAGE_NAME = re.compile(r"(?i)(https?://|data:image/)\S+|\S[^\t]*\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d+)?")
"""A field that names an image: a URL, or a file name with or without the number of its caption."""
_NUMBERED = re.compile(r"caption\d+")
_IGNORED = re.compile(r"[\s_\-\ufeff]+")


class ColumnNames(Options):
    """Column names of a tabular source that differ from the usual ones.

    Headers match regardless of case, spaces, hyphens and underscores: `image_id` finds `Image ID`.
    """

    caption: str | tuple[str, ...] | None = None
    """Column with the caption, or a list of columns with one caption each. Default: the first of caption, TEXT, text,
    title, captions, query, or else all of caption_0, caption_1, …"""
    image: str | None = None
    """Column with the image's key and file name. Default: the key is the first of image_id, image, filename, key, URL,
    url, file_name, image_path; the file name is the first of image, filename, file_name, image_path, or else the key.
    In Parquet with pictures it is a text column with their keys, or the column of the pictures themselves (binary, or a
    struct with `bytes`), which are then identified by their contents. Default: the first of the same names with keys,
    or else contents; pictures are in image, img, picture, photo, jpg, jpeg, png, webp or the only such struct."""
    license: str | None = None
    """Column with the row's license. Default: the first of licence, license, LICENCE, LICENSE."""
    split: str | None = None
    """Column with the row's split. Default: split, if it exists."""

    @field_validator("caption", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value if isinstance(value, list | tuple) and value else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected a column's name or a list of names, got {value!r}; put numbers in quotes")
        return value

    @property
    def usual(self) -> tuple[tuple[str, ...], ...]:
        """The usual names of the column with the caption; those of the first group count first, exact or not."""
        return (CAPTION,)

    @property
    def captions(self) -> tuple[str, ...]:
        """The columns with captions; empty to find them by their usual names."""
        return (self.caption,) if isinstance(self.caption, str) else self.caption or ()

    def named(self) -> list[tuple[str, str]]:
        """Every named column, each as a pair of option and column."""
        others = (("image", self.image), ("license", self.license), ("split", self.split))
        captions = [("caption", name) for name in self.captions]
        return captions + [(option, name) for option, name in others if name is not None]


class QueryColumnNames(ColumnNames):
    """Column names of a query log, whose other texts are of what was found: a title, a caption."""

    @property
    def usual(self) -> tuple[tuple[str, ...], ...]:
        return ("query",), CAPTION


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None if the table has no such column."""

    captions: tuple[str, ...]
    """Each holds a caption of the row, or a list of captions."""
    image: str | None = None
    """Becomes the image's id."""
    path: str | None = None
    """Becomes the image's name inside the archive of images."""
    license: str | None = None
    split: str | None = None
    count: str | None = None
    """Says how often a query was asked; only a query log has it."""
    picture: str | None = None
    """Holds the images themselves; Parquet only."""

    @property
    def keys(self) -> tuple[str | None, ...]:
        """The columns of image, path, split, license and count, in the order in which a `Batcher` adds them."""
        return self.image, self.path, self.split, self.license, self.count

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in (*self.captions, *self.keys, self.picture) if name is not None))


def plain_name(name: str) -> str:
    """A column's name in lower case without spaces, hyphens, underscores and byte order marks."""
    return _plain(name) if len(name) <= LONGEST_NAME else name


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return _IGNORED.sub("", name).casefold()


def match_column(names: Collection[str], *usual: str) -> str | None:
    """The column that matches the first of the usual names exactly, or else the first that one resembles."""
    if exact := next((name for name in usual if name in names), None):
        return exact
    alike = {plain_name(name): name for name in reversed(list(names))}
    return next((alike[plain_name(name)] for name in usual if plain_name(name) in alike), None)


def choose_columns(available: Sequence[str], chosen: ColumnNames) -> Columns | None:
    """The columns that the user names, or else those with the first usual names; None if none holds a caption.

    Captions without a usual name are all of ``caption_0``, ``caption_1``, ….
    """
    if chosen.captions:
        captions = [match_column(available, name) for name in chosen.captions]
    else:
        usual = next(filter(None, (match_column(available, *names) for names in chosen.usual)), None)
        captions = [name for name in available if _NUMBERED.fullmatch(plain_name(name))] if usual is None else [usual]
    if not (captions := [name for name in captions if name is not None]):
        return None
    image = match_column(available, *([chosen.image] if chosen.image else IMAGE))
    return Columns(
        captions=tuple(dict.fromkeys(captions)),
        image=image,
        path=image if chosen.image else match_column(available, *PATH) or image,
        license=match_column(available, *([chosen.license] if chosen.license else LICENSE)),
        split=match_column(available, *([chosen.split] if chosen.split else SPLIT)),
        count=match_column(available, *COUNT),
    )


def need_columns(available: Sequence[str], chosen: ColumnNames, where: str) -> Columns:
    """Like :func:`choose_columns`, but raise InputError for a missing named column or a table without captions."""
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
    """Whether a line of fields looks like a header: it contains a usual caption name, or several numbered ones."""
    numbered = [name for name in names if _NUMBERED.fullmatch(plain_name(name))]
    return match_column(names, *CAPTION) is not None or len(numbered) > 1


def table_format(line: str) -> str | None:
    """The format of plain text whose first line is a table's: ``csv``, ``tsv``, or None if it is no table's.

    Such a line names captions beside images, counts or splits, or anything beside ``query``; or it is a caption and its
    image's name, separated by a tab.
    """
    if "\t" in line and any(IMAGE_NAME.fullmatch(field.strip()) for field in line.split("\t")):
        return "tsv"
    for separator in ",;\t|":
        names = [name.strip().strip('"') for name in line.split(separator)]
        others = match_column(names, *IMAGE, *PATH, *COUNT, *SPLIT)
        if len(names) > 1 and (match_column(names, "query") or (match_column(names, *CAPTION) and others)):
            return "tsv" if separator == "\t" else "csv"
    return None
