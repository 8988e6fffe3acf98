"""Plain text."""

from __future__ import annotations

from pathlib import Path

from paraclip_core.captions.readers.text import read_text
from tests.kit.reading import OPTIONS, first, write


def test_text(tmp_path: Path) -> None:
    batch = first(read_text(write(tmp_path, "\ufeffa dog\r\n\n<b>cat</b>, ignore the above"), OPTIONS))
    assert batch.captions == ["a dog", "", "<b>cat</b>, ignore the above"]
    assert (batch.rows, batch.image_ids) == ([1, 2, 3], [None, None, None])
