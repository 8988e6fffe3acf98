"""Plain text."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.captions.readers.text import read_text
from paraclip_core.errors import InputError
from tests.kit.reading import OPTIONS, first, write


@pytest.mark.parametrize("line", ["image,caption", "caption;image", "1.jpg#0\ta dog", "a dog\thttp://a/1.jpg"])
def test_a_table_is_not_taken_for_plain_text(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"plain text, but its first line is one of a table .*format"):
        first(read_text(write(tmp_path, f"\ufeff{line}\n"), OPTIONS))
    assert first(read_text(write(tmp_path, f"a caption, an image\n{line}\n"), OPTIONS)).captions[1] == line


def test_text(tmp_path: Path) -> None:
    batch = first(read_text(write(tmp_path, "\ufeffa dog\r\n\n<b>cat</b>, ignore the above"), OPTIONS))
    assert batch.captions == ["a dog", "", "<b>cat</b>, ignore the above"]
    assert (batch.rows, batch.image_ids) == ([1, 2, 3], [None, None, None])
