"""Removes the parts of a web caption that say nothing about its image."""

from __future__ import annotations

import re

_NOISE = re.compile(
    r"<[^<>]{0,200}>|https?:\S+|www\.\S+|\b(?:IMG|DSC|DSCN|DSCF|PIC|P)[_ -]?\d{3,}\b|#\d+"
    r"|\.(?:jpe?g|png|gif|webp|bmp)\b",
    re.I,
)
_RUNS = re.compile(r"[!?]{2,}|\.{2,}")


def tidy(text: str) -> str:
    """Return a web caption without tags, links, file names, camera numbers and hash numbers, and with capitals lowered.

    Returns the text unchanged if nothing would be left.
    """
    line = _NOISE.sub(" ", text)
    letters = [char for char in line if char.isalpha()]
    capitals = [word for word in line.split() if word[:1].isupper()]
    if letters and (all(char.isupper() for char in letters) or len(capitals) == len(line.split()) > 3):
        line = line.lower()
    line = " ".join(_RUNS.sub(lambda run: run.group()[0], line).split()).strip(" -|,;:#")
    return line or text
