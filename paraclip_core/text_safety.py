"""Untrusted text made safe to show: it cannot control a terminal, break a line or fail to encode."""

from __future__ import annotations

import re

LONGEST = 400
"""Maximum characters of another library's error that a message quotes."""
STYLES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Escape sequences that color text on a terminal."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal interprets instead of showing, except harmless tabs and line breaks. Also characters that
no output can encode: lone surrogates, with which Python represents undecodable bytes of file names."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def one_line(text: object, most: int = LONGEST) -> str:
    """The beginning of a text from outside, such as another library's error, as one printable line of a message."""
    line = " ".join(STYLES.sub("", str(text)).split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= most else f"{line[:most]}…"


def printable(text: str) -> str:
    """Text that is safe for a terminal: image ids and logs are untrusted and may contain escape sequences."""
    return CONTROL.sub("\ufffd", text)


def json_escaped(text: str) -> str:
    """A JSON document with JSON escapes for everything that a terminal would interpret."""
    return CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def encodable(text: str) -> str:
    """Text that a table can hold: with U+FFFD for bytes that were not UTF-8."""
    return _SURROGATE.sub("\ufffd", text)
