"""Which columns of a table are the captions, the image, the licence and the split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import InputError

__all__ = [
    "CAPTION",
    "IMAGE",
    "LICENCE",
    "PATH",
    "SPLIT",
    "Columns",
    "choose_columns",
    "has_caption",
    "need_image",
    "no_caption",
    "no_column",
    "table_header",
]

CAPTION = ("caption", "TEXT", "text", "title", "captions")
IMAGE = ("image_id", "image", "filename", "key", "URL", "url", "file_name", "image_path")
PATH = ("image", "filename", "file_name", "image_path")
LICENCE = ("licence", "license", "LICENCE", "LICENSE")
SPLIT = ("split",)
NUMBERED = re.compile(r"caption_\d+")


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

    def names(self) -> list[str]:
        """Every column that is used, each once."""
        found = (*self.captions, self.image, self.path, self.licence, self.split, self.picture)
        return list(dict.fromkeys(name for name in found if name is not None))


def choose_columns(available: Sequence[str], wanted: ColumnNames, where: str) -> Columns:
    """Pick the columns: those that the user names, otherwise the first usual name that is there.

    Captions without a usual name are all of ``caption_0``, ``caption_1``, ….

    Raises:
        InputError: a named column is absent, or no column looks like a caption; the text lists the columns.
    """
    for option, name in wanted.named():
        if name not in available:
            raise no_column(option, name, available, where)
    captions = wanted.captions or _usual_captions(available)
    if not captions:
        raise no_caption(available, where)
    image = wanted.image or _first(IMAGE, available)
    return Columns(
        captions=captions,
        image=image,
        path=wanted.image or _first(PATH, available) or image,
        licence=wanted.licence or _first(LICENCE, available),
        split=wanted.split or _first(SPLIT, available),
    )


def has_caption(names: Sequence[str]) -> bool:
    """Whether a line of fields reads like a header: one of them, or several that are numbered, are usual captions."""
    return any(name in CAPTION for name in names) or len(_usual_captions(names)) > 1


def need_image(found: str | None, available: Sequence[str], options: SourceOptions, where: str) -> None:
    """See to it that a source with images says which image a caption belongs to.

    Raises:
        InputError: it has images and no column with them; the text lists the columns.
    """
    if options.images is not None and found is None:
        raise InputError(
            f"{where} has none of the columns {', '.join(IMAGE)}, so no caption has an image of data.sources[].images; "
            f"its columns are {_listed(available)}. Name the one with the image in data.sources[].columns.image"
        )


def table_header(line: str, separators: str) -> str | None:
    """The separator with which a line is the header of captions and images, None where it reads like none."""
    for separator in separators:
        names = {name.strip().strip('"') for name in line.split(separator)}
        if not names.isdisjoint(CAPTION) and not names.isdisjoint(IMAGE + PATH):
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


def _usual_captions(available: Sequence[str]) -> tuple[str, ...]:
    usual = _first(CAPTION, available)
    return (usual,) if usual is not None else tuple(name for name in available if NUMBERED.fullmatch(name))


def _first(names: Sequence[str], available: Sequence[str]) -> str | None:
    return next((name for name in names if name in available), None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:30])
    return shown + (f" and {len(names) - 30} more" if len(names) > 30 else "") if names else "none at all"
