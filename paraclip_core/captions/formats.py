"""The format and reader of a caption file, from the option or from its name and first bytes.

A file that cannot be read or recognized raises InputError.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.columns import table_format
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers import READERS
from paraclip_core.captions.readers.lines import numbered_lines, open_bytes, without_mark
from paraclip_core.captions.rows import RowBatch
from paraclip_core.errors import InputError
from paraclip_core.options import import_path

SUFFIXES = {suffix: name for name, reader in READERS.items() for suffix in reader.suffixes} | {".json": "json"}
HEAD = 1 << 20


def named_format(path: Path) -> str | None:
    """The format that a file's name suggests (``json`` for any kind of JSON), or None."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def detect(path: Path) -> str:
    """The format of a file, from its name or, if that is ambiguous, from its first bytes.

    Plain text that begins like a table is one.
    """
    named = named_format(path)
    if named == "text":
        _, line = next(numbered_lines(path), (0, None))
        return table_format(line or "") or named
    if named is not None and named != "json":
        return named
    with open_bytes(path) as file:
        head = file.read(HEAD)
    for name, reader in READERS.items():
        if reader.magic is not None and head.startswith(reader.magic[1], reader.magic[0]):
            return name
    start = without_mark(head, path).lstrip()
    if not start:
        raise InputError(f"{path} is empty; expected captions")
    if not start.startswith((b"[", b"{")):
        raise InputError(f"cannot tell the format of {path}; set data.sources[].format to one of {', '.join(READERS)}")
    for name, reader in READERS.items():
        if reader.is_json and import_path(reader.is_json, f"the reader of {name}", "a function")(start):
            return name
    raise InputError(f"cannot tell the format of {path}; set data.sources[].format to karpathy, coco or jsonl")


def read(path: Path, options: SourceOptions, form: str) -> Iterator[RowBatch]:
    """Rows of a file in format `form`, batch by batch."""
    need_file(path)
    return import_path(READERS[form].read, f"the reader of {form}", "a function")(path, options)


def need_file(path: Path) -> None:
    """Check that `path` is a regular file, since it is read twice: for its hash and for its rows."""
    if not path.exists():
        raise InputError(f"{path.absolute()} does not exist; data.sources[].path is relative to data.root")
    if not path.is_file():
        raise InputError(
            f"{path} is not a file; expected captions in a file, or a folder that holds {', '.join(SUFFIXES)}"
        )
