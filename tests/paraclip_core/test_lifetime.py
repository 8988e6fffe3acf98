"""Temporary folders."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from paraclip_core.errors import FullDiskError
from paraclip_core.lifetime import TempDir


def test_it_is_gone_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with TempDir("kind-") as folder:
        assert folder.is_dir() and folder.name.startswith("paraclip-kind-")
        (folder / "request.json").write_text("{}")
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(FullDiskError, match="TMPDIR"):
        TempDir()
