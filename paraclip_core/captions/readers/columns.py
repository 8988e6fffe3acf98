"""Which column of a table is the caption, the image, the licence and the split."""

from __future__ import annotations

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
    "need_image",
    "no_caption",
    "table_header",
]

CAPTION = ("caption", "TEXT", "text", "title", "captions")
IMAGE = ("image_id", "image", "filename", "key", "URL", "url", "file_name", "image_path")
PATH = ("image", "filename", "file_name", "image_path")
LICENCE = ("licence", "license", "LICENCE", "LICENSE")
SPLIT = ("split",)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used; None where a table has no such column."""

    caption: str
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
        found = (self.caption, self.image, self.path, self.licence, self.split, self.picture)
        return list(dict.fromkeys(name for name in found if name is not None))


def choose_columns(available: Sequence[str], wanted: ColumnNames, where: str) -> Columns:
    """Pick the columns: those that the user names, otherwise the first usual name that is there.

    Raises:
        InputError: a named column is absent, or no column looks like a caption; the text lists the columns.
    """
    for option, name in wanted.model_dump().items():
        if name is not None and name not in available:
            raise InputError(
                f"{where} has no column {name!r} (data.sources[].columns.{option}); it has {_listed(available)}"
            )
    caption = wanted.caption or _first(CAPTION, available)
    if caption is None:
        raise no_caption(available, where)
    image = wanted.image or _first(IMAGE, available)
    return Columns(
        caption=caption,
        image=image,
        path=wanted.image or _first(PATH, available) or image,
        licence=wanted.licence or _first(LICENCE, available),
        split=wanted.split or _first(SPLIT, available),
    )


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


def no_caption(available: Sequence[str], where: str) -> InputError:
    """The error of a table in which no column looks like a caption."""
    return InputError(
        f"{where} has none of the columns {', '.join(CAPTION)}; its columns are {_listed(available)}. "
        "Name the one with the caption in data.sources[].columns.caption"
    )


def _first(names: Sequence[str], available: Sequence[str]) -> str | None:
    return next((name for name in names if name in available), None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:30])
    return shown + (f" and {len(names) - 30} more" if len(names) > 30 else "") if names else "none at all"
