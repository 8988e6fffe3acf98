"""Markdown in which untrusted text stays plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Underscores inside words and these marks mean nothing inside a line; everything else that Markdown, its tables, links
# that need no brackets, mentions, formulas or HTML could mean something by becomes a character reference, which is
# never structure.
_LIVE = re.compile(r"(?<![a-z0-9])_|_(?![a-z0-9])|(?<=www)\.|[^\w\s.,;()/=+%'\"?-]", re.I | re.A)


def inert(text: str) -> str:
    """Text for a table cell or the middle of a line; line breaks become spaces, invisible characters are escaped."""
    line = "".join(char if char.isprintable() else _escape(char) for char in " ".join(text.split()))
    return _LIVE.sub(lambda mark: f"&#{ord(mark.group())};" if mark.group().isascii() else mark.group(), line)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose cells are numbers or inert texts."""
    lines = ["| " + " | ".join(inert(str(cell)) for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
