"""Which columns of a table are the captions, the image, the licence and the split.

Names match whatever their case, blanks, hyphens and underscores: ``Image ID`` is ``image_id``. A column of exactly the
name comes before one that is only like it. Two columns for one role are an error that names the option that chooses.

A named column that is absent, no caption, and several columns for one role raise InputError, which lists them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import InputError

CAPTION = ("caption", "TEXT", "text", "title", "captions")
IMAGE = ("image_id", "image", "filename", "key", "URL", "url", "file_name", "image_path")
PATH = ("image", "filename", "file_name", "image_path")
LICENCE = ("licence", "license", "LICENCE", "LICENSE")
SPLIT = ("split",)
OPTIONS = "data.sources[].columns"
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
        """Every column that is used, each once."""
        return list(dict.fromkeys(name for name in (*self.captions, *self.keys, self.picture) if name is not None))


def plain_name(name: str) -> str:
    """A column's name without case, blanks, hyphens, underscores and byte order marks."""
    return _plain(name) if len(name) <= LONGEST_NAME else name


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return _IGNORED.sub("", name).casefold()


def match_column(names: Collection[str], expected: str, option: str, where: str, explicit: bool = True) -> str | None:
    """The column that `expected` means: the one of exactly this name, or else the one that :func:`plain_name` equates.

    Where the user did not choose the name (`explicit`), a second column like it is an error, too; its message names the
    table (`where`) and what names the column (`option`). None where there is no such column.
    """
    plain = plain_name(expected)
    alike = [name for name in names if name == expected or (plain and plain_name(name) == plain)]
    exact = [name for name in alike if name == expected]
    if len(exact) == 1 and (explicit or len(alike) == 1):
        return expected
    if len(alike) > 1:
        raise _ambiguous(exact if len(exact) > 1 else alike, option, where)
    return alike[0] if alike else None


def usual_column(names: Collection[str], usual: Sequence[str], option: str, where: str) -> str | None:
    """The column of the first usual name that is there exactly, or else of the first that a column is like."""
    name = next((name for name in usual if name in names), None) or _first_alike(names, usual)
    return None if name is None else match_column(names, name, f"{OPTIONS}.{option}", where, explicit=False)


def choose_columns(available: Sequence[str], chosen: ColumnNames, where: str) -> Columns:
    """Pick the columns: those that the user names, otherwise the first usual name that is there.

    Captions without a usual name are all of ``caption_0``, ``caption_1``, ….
    """
    columns = find_columns(available, chosen, where)
    if columns is None:
        raise no_caption(available, where)
    return columns


def find_columns(available: Sequence[str], chosen: ColumnNames, where: str) -> Columns | None:
    """As :func:`choose_columns`, but None where no column looks like a caption."""
    named: dict[str, list[str]] = {}
    for option, name in chosen.named():
        column = match_column(available, name, f"{OPTIONS}.{option}", where)
        if column is None:
            raise no_column(option, name, available, where)
        named.setdefault(option, []).append(column)
    captions = tuple(dict.fromkeys(named.get("caption", ()))) or _usual_captions(available, where)
    if not captions:
        return None

    def one(option: str, usual: Sequence[str]) -> str | None:
        return named[option][0] if option in named else usual_column(available, usual, option, where)

    image = one("image", IMAGE)
    return Columns(
        captions=captions,
        image=image,
        path=one("image", PATH) or image,
        licence=one("license", LICENCE),
        split=one("split", SPLIT),
    )


def has_caption(names: Sequence[str]) -> bool:
    """Whether a line of fields reads like a header: one of them, or several that are numbered, are usual captions."""
    return _first_alike(names, CAPTION) is not None or len(_numbered(names)) > 1


def need_image(column: str | None, available: Sequence[str], options: SourceOptions, where: str) -> None:
    """See to it that a source with images says which image a caption belongs to."""
    if options.images is not None and column is None:
        raise InputError(
            f"{where} has none of the columns {', '.join(IMAGE)}, so no caption has an image of data.sources[].images; "
            f"its columns are {_listed(available)}. Name the one with the image in data.sources[].columns.image"
        )


def table_header(line: str, separators: str) -> str | None:
    """The separator with which a line is the header of captions and images, None where it reads like none."""
    for separator in separators:
        names = [name.strip().strip('"') for name in line.split(separator)]
        if _first_alike(names, CAPTION) and _first_alike(names, IMAGE + PATH):
            return separator
    return None


def no_column(option: str, name: str, available: Sequence[str], where: str) -> InputError:
    """The error of a table without a column that `data.sources[].columns` names."""
    return InputError(f"{where} has no column {name!r} (data.sources[].columns.{option}); it has {_listed(available)}")


def no_caption(available: Sequence[str], where: str) -> InputError:
    """The error of a table in which no column looks like a caption."""
    return InputError(
        f"{where} has none of the columns {', '.join(CAPTION)}; its columns are {_listed(available)}. "
        "Name the one with the caption, or a list of them, in data.sources[].columns.caption"
    )


def _usual_captions(available: Sequence[str], where: str) -> tuple[str, ...]:
    option = f"{OPTIONS}.caption"
    usual = usual_column(available, CAPTION, "caption", where)
    if usual is None:
        return tuple(
            match_column(available, name, option, where, explicit=False) or name for name in _numbered(available)
        )
    # What is exactly a less usual name may be something else beside what is like a more usual one.
    first = _first_alike(available, CAPTION)
    if first is not None and plain_name(first) != plain_name(usual):
        rival = match_column(available, first, option, where)
        raise _ambiguous([name for name in available if name in (usual, rival)], option, where)
    return (usual,)


def _numbered(names: Sequence[str]) -> list[str]:
    return [name for name in names if _NUMBERED.fullmatch(plain_name(name))]


def _first_alike(names: Collection[str], usual: Sequence[str]) -> str | None:
    """The first usual name that a column is like."""
    plain = {plain_name(name) for name in names}
    return next((name for name in usual if plain_name(name) in plain), None)


def _ambiguous(names: Sequence[str], option: str, where: str) -> InputError:
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return InputError(f"{where} has more than one column {distinct[0]!r}; leave one, or rename the others")
    parent, leaf = option.split(".")[-2:]
    listed = " beside ".join(repr(name[:60]) for name in distinct[:8])
    return InputError(
        f"{where} has the columns {listed}, and either may be the {leaf}; name the one that is meant in {option}, for "
        f"example {parent}: {{{leaf}: {distinct[-1][:60]}}}"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:30])
    return shown + (f" and {len(names) - 30} more" if len(names) > 30 else "") if names else "none at all"
