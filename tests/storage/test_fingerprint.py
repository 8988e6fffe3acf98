"""Names of artifacts, and hashes of source files that are remembered only while they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip.storage import files
from paraclip.storage import fingerprint as module
from paraclip.storage.fingerprint import FileHashes, canonical_json, fingerprint
from paraclip_core.errors import InputError

OPTIONS = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were written just now be remembered."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))


@given(OPTIONS)
def test_the_order_of_options_does_not_matter_and_all_else_does(options: dict[str, Any]) -> None:
    options.pop("a", None)
    turned = dict(reversed(options.items()))
    assert canonical_json(options) == canonical_json(turned)
    assert fingerprint("s", 1, options, options and {"a": "b"}) == fingerprint("s", 1, turned, options and {"a": "b"})
    names = {
        fingerprint(stage, version, given, inputs)
        for stage, version in (("s", 1), ("t", 1), ("s", 2))
        for given in (options, {**options, "a": 1}, {**options, "a": "1"}, {**options, "a": "\ud800"})
        for inputs in ({"i": "x"}, {"i": "y"}, {"j": "x"}, {})
    }
    assert len(names) == 3 * 4 * 4
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_a_name_stays_the_same_for_ever() -> None:
    expected = hashlib.blake2b(
        b'{"inputs":{"i":"x"},"options":{"a":1},"stage":"s","version":1}', digest_size=16
    ).hexdigest()
    assert fingerprint("s", 1, {"a": 1}, {"i": "x"}) == expected


@pytest.mark.usefixtures("settled")
def test_an_edit_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    hashes = FileHashes(tmp_path / "hashes.json")
    hashes.of([source])
    stat = source.stat()
    time.sleep(0.02)
    source.write_bytes(b"abd")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.stat().st_mtime_ns == stat.st_mtime_ns
    assert hashes.of([source]) == {str(source): hashlib.sha256(b"abd").hexdigest()}


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    source = tmp_path / "source"
    hashes = FileHashes(tmp_path / "hashes.json")
    for content in (b"abc", b"abd", b"abe"):
        source.write_bytes(content)  # perhaps within one tick of the file system's clock
        assert hashes.of([source])[str(source)] == hashlib.sha256(content).hexdigest()
    assert not (tmp_path / "hashes.json").exists()
    time.sleep(0.15)
    hashes.of([source])
    assert (tmp_path / "hashes.json").exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", ["{", "[]", '{"SOURCE": [1, 2, "x"]}'])
def test_a_damaged_memory_is_started_anew(tmp_path: Path, content: str) -> None:
    source, memory = tmp_path / "source", tmp_path / "hashes.json"
    source.write_bytes(b"abc")
    memory.write_text(content.replace("SOURCE", str(source)))
    assert FileHashes(memory).of([source]) == {str(source): hashlib.sha256(b"abc").hexdigest()}
    assert json.loads(memory.read_text())[str(source)][3] == hashlib.sha256(b"abc").hexdigest()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=f"cannot read {path}"):
            FileHashes(tmp_path / "hashes.json").of([path])
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(InputError, match=f"{path} is a pipe or a device"):
            FileHashes(tmp_path / "hashes.json").of([path])


# Folders


def hash_of(folder: Path, root: Path) -> str:
    return FileHashes(root / "cache" / "hashes.json").of_folder(folder)


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


@pytest.mark.usefixtures("settled")
def test_only_what_changed_is_read(folder: Path, tmp_path: Path, reads: list[str]) -> None:
    first = hash_of(folder, tmp_path / "root")
    assert sorted(reads) == ["a.png", "a.png", "d.png"]
    reads.clear()
    assert hash_of(folder, tmp_path / "root") == first
    assert reads == []
    (folder / "b/c/d.png").write_bytes(b"other")
    (folder / "b/new.png").write_bytes(b"new")
    assert hash_of(folder, tmp_path / "root") != first
    assert sorted(reads) == ["d.png", "new.png"]


@pytest.mark.usefixtures("settled")
def test_place_does_not_count_but_names_and_contents_do(folder: Path, tmp_path: Path) -> None:
    first = hash_of(folder, tmp_path / "root")
    moved = shutil.copytree(folder, tmp_path / "elsewhere/pictures")
    assert hash_of(moved, tmp_path / "root") == first
    (moved / "a.png").rename(moved / "z.png")
    assert hash_of(moved, tmp_path / "root") != first
    (moved / "z.png").rename(moved / "a.png")
    # What is no file is passed over.
    (moved / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(moved / "pipe.png")
    assert hash_of(moved, tmp_path / "root") == first
    (moved / "a.png").unlink()
    assert hash_of(moved, tmp_path / "root") != first
    # A name that is no text is hashed all the same.
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    odd = hash_of(folder, tmp_path / "root")
    assert hash_of(folder, tmp_path / "root") == odd != first
    (folder / "a.png").write_bytes(b"other")
    assert hash_of(folder, tmp_path / "root") != odd


@pytest.mark.usefixtures("settled")
def test_a_root_among_the_images_does_not_count(folder: Path, tmp_path: Path) -> None:
    before = hash_of(folder, folder / "runs")
    (folder / "runs/cache").mkdir(parents=True, exist_ok=True)
    (folder / "runs/cache/new.json").touch()
    assert hash_of(folder, folder / "runs") == before
    assert hash_of(folder / "runs", folder / "runs") != before
    assert hash_of(folder, tmp_path / "root") != before
