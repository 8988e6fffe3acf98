"""One hash for a folder of many files, computed anew only where it must be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from paraclip_core.errors import InputError
from storage import files
from storage import folder_hashes as module
from storage.folder_hashes import folder_hash


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were written just now be remembered."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in order."""
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return original(path)

    original = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", counted)
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b/a.png", "b/c/d.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path / "images"


def test_only_what_changed_is_read(folder: Path, tmp_path: Path, reads: list[str]) -> None:
    first = folder_hash(folder, tmp_path / "memory")
    assert sorted(reads) == ["a.png", "a.png", "d.png"]
    reads.clear()
    assert folder_hash(folder, tmp_path / "memory") == first
    assert reads == []
    (folder / "b/c/d.png").write_bytes(b"other")
    (folder / "b/new.png").write_bytes(b"new")
    assert folder_hash(folder, tmp_path / "memory") != first
    assert sorted(reads) == ["d.png", "new.png"]


def test_place_does_not_count_but_names_and_contents_do(folder: Path, tmp_path: Path) -> None:
    first = folder_hash(folder, tmp_path / "memory")
    moved = shutil.copytree(folder, tmp_path / "elsewhere/pictures")
    assert folder_hash(moved, tmp_path / "memory") == first
    (moved / "a.png").rename(moved / "z.png")
    assert folder_hash(moved, tmp_path / "memory") != first
    (moved / "z.png").rename(moved / "a.png")
    assert folder_hash(moved, tmp_path / "memory") == first
    (moved / "a.png").unlink()
    assert folder_hash(moved, tmp_path / "memory") != first


def test_a_change_of_the_same_size_is_seen(folder: Path, tmp_path: Path) -> None:
    first = folder_hash(folder, tmp_path / "memory")
    stat = (folder / "a.png").stat()
    (folder / "a.png").write_bytes(b"A.PNG")
    os.utime(folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert folder_hash(folder, tmp_path / "memory") != first


def test_damaged_memory_is_made_anew(folder: Path, tmp_path: Path, reads: list[str]) -> None:
    first = folder_hash(folder, tmp_path / "memory")
    (listing,) = (tmp_path / "memory").iterdir()
    listing.write_bytes(b"PAR1 no")
    reads.clear()
    assert folder_hash(folder, tmp_path / "memory") == first
    assert len(reads) == 3


def test_a_name_that_is_no_text_is_hashed_all_the_same(folder: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    first = folder_hash(folder, tmp_path / "memory")
    assert folder_hash(folder, tmp_path / "memory") == first
    (folder / "a.png").write_bytes(b"other")
    assert folder_hash(folder, tmp_path / "memory") != first


def test_a_file_just_written_is_not_taken_for_known(
    folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SETTLED_NS", 10**15)
    folder_hash(folder, tmp_path / "memory")
    folder_hash(folder, tmp_path / "memory")
    assert len(reads) == 6


def test_what_is_no_file_is_passed_over(folder: Path, tmp_path: Path) -> None:
    first = folder_hash(folder, tmp_path / "memory")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    assert folder_hash(folder, tmp_path / "memory") == first


def test_a_file_that_cannot_be_read_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    # The superuser, whom tests may run as, is refused nothing.
    monkeypatch.setattr(module, "file_sha256", refused)
    with pytest.raises(InputError, match=r"a\.png: Permission denied"):
        folder_hash(folder, tmp_path / "memory")


def test_a_root_among_the_images_does_not_count(folder: Path, tmp_path: Path) -> None:
    before = folder_hash(folder, tmp_path / "memory", without=folder / "runs")
    (folder / "runs/cache").mkdir(parents=True)
    (folder / "runs/cache/new.json").touch()
    assert folder_hash(folder, tmp_path / "memory", without=folder / "runs") == before
    assert folder_hash(folder / "runs", tmp_path / "memory", without=folder / "runs") != before
    assert folder_hash(folder, tmp_path / "memory") != before
