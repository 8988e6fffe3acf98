"""What all text files share: endless lines, bytes that are not UTF-8, gzip."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from paraclip_core.captions.readers.csv import read_csv, read_tsv
from paraclip_core.captions.readers.json import read_jsonl
from paraclip_core.captions.readers.lines import LONGEST_RECORD
from paraclip_core.captions.readers.text import read_text
from paraclip_core.errors import InputError
from tests.kit.reading import OPTIONS, first, write


def test_an_endless_line_is_rejected_without_being_kept(tmp_path: Path) -> None:
    path = write(tmp_path, b"caption\na dog\n" + b"x" * (2 * LONGEST_RECORD + 5) + b"\na cat\n")
    for reader in (read_tsv, read_text, read_jsonl):
        if reader is read_jsonl:
            path = write(tmp_path, b'{"text": "a dog"}\n' + b"x" * (LONGEST_RECORD + 5) + b'\n{"text": "a cat"}\n')
        batches = list(reader(path, OPTIONS))
        captions = [caption for batch in batches for caption in batch.captions]
        assert captions[-2:] == ["a dog", "a cat"]
        assert len([reject for batch in batches for reject in batch.rejects]) == 1


def test_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, b"caption,image\ncaf\xe9,1\na dog,2\n")
    assert first(read_csv(path, OPTIONS)).captions == ["caf\udce9", "a dog"]
    path = write(tmp_path, b'{"caption": "caf\xe9"}\n{"caption": "\\ud800"}\n')
    assert first(read_jsonl(path, OPTIONS)).captions == ["caf\udce9", "\ud800"]
    with pytest.raises(InputError, match="UTF-16"):
        first(read_text(write(tmp_path, "a dog".encode("utf-16")), OPTIONS))


def test_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"a dog\n" * 10_000 + bytes(range(65, 91)) * 50)
    path = write(tmp_path, packed)
    assert first(read_text(path, OPTIONS)).captions[0] == "a dog"
    for damaged in (packed[:-20], packed[:40] + b"\xff" * 40 + packed[80:], packed[:-8] + b"\x00" * 8):
        with pytest.raises(InputError, match="cannot read"):
            list(read_text(write(tmp_path, damaged), OPTIONS))
