"""Text from others as people may be shown it: nothing in it steers a terminal, breaks a line or cannot be encoded."""

from __future__ import annotations

import re

LONGEST = 400
"""Characters of another library's error that a message quotes."""
STYLES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""What colors text on a terminal."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it; tabs and line breaks are harmless. And what no output can encode: lone
surrogates, by which Python holds the bytes of file names that are no text."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def one_line(text: object, most: int = LONGEST) -> str:
    """The beginning of a text from outside, such as another library's error, as one printable line of a message."""
    line = " ".join(STYLES.sub("", str(text)).split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= most else f"{line[:most]}…"


def printable(text: str) -> str:
    """Text as a terminal may have it: image ids and logs hold what others wrote, escape sequences included."""
    return CONTROL.sub("\ufffd", text)


def json_escaped(text: str) -> str:
    """A JSON document with JSON's own escapes for what a terminal would obey."""
    return CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def encodable(text: str) -> str:
    """Text as a table may have it: with U+FFFD for bytes that were not UTF-8."""
    return _SURROGATE.sub("\ufffd", text)
