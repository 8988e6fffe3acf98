"""Files that appear whole or not at all, even on a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.artifacts import parse_manifest
from paraclip.storage.files import atomic_folder, read_json, remove_temporary, write_atomic, write_json
from paraclip.storage.locks import parse_owner
from paraclip.storage.parquet import write_table
from paraclip_core.errors import ArtifactError, ConfigError

REWRITE = """
import sys
from pathlib import Path
from paraclip.storage.files import write_json
print("ready", flush=True)
for number in range(10**9):
    write_json(Path(sys.argv[1]), {"numbers": [number] * 20_000})
"""


def test_contents_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def note(descriptor: int) -> None:
        state = os.fstat(descriptor)
        what = "folder" if state.st_ino == tmp_path.stat().st_ino else f"{state.st_size} bytes"
        synced.append((what, (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_atomic(tmp_path / "file", lambda file: file.write(b"content"))
    assert synced == [("7 bytes", False), ("folder", True)]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file", 1)

    def broken(file: Any) -> None:
        file.write(b"half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_atomic(tmp_path / "file", broken)
    assert read_json(tmp_path / "file") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_never_sees_half_a_file_and_a_kill_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"numbers": [0] * 20_000})
    for _ in range(2):
        command = [sys.executable, "-c", REWRITE, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                assert len(set(read_json(path)["numbers"])) == 1
            child.send_signal(signal.SIGKILL)
        assert len(read_json(path)["numbers"]) == 20_000
    remove_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_the_same_bytes_for_equal_values_and_what_is_not_json_is_refused_by_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == '{\n  "a": "é",\n  "b": 1\n}\n'.encode()
    for value in (float("nan"), object()):
        with pytest.raises(ArtifactError, match=r"c\.json cannot be written, its content is not JSON"):
            write_json(tmp_path / "c.json", {"metric": value})
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_reading_what_is_damaged(tmp_path: Path) -> None:
    endless = b"[" * 100_000
    for content in (b"", b"{", b"\xff\xfe\xfa", b'{"a": 1}{', endless):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"bad\.json is not valid JSON"):
            read_json(tmp_path / "bad.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json is not valid JSON"):
        parse_manifest(endless, "x/manifest.json", "ingest", "f")
    assert parse_owner(endless) == {}


def test_temporary_files_are_removed_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / ".w.tmp" / ".v.tmp").mkdir(parents=True)
    for name in (".x.json.1.tmp", "a/b/.y.tmp", "a/b/.w.tmp/.v.tmp/z", "a/b/.w.tmp/.u.tmp", "a/keep.tmp", "a/.hidden"):
        (tmp_path / name).write_text("")
    remove_temporary(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".hidden", "a", "b", "keep.tmp"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "new"
    with atomic_folder(target) as draft:
        draft.mkdir()
        (draft / "one").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.parent.rglob("*")] == ["new", "one"]
    with pytest.raises(ConfigError, match="is not empty; choose a new folder"), atomic_folder(target):
        raise AssertionError("nothing is written beside what is there")
    (target / "one").unlink()
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as draft:
        draft.mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in target.parent.rglob("*")] == ["new"]
    with atomic_folder(target) as draft:  # an empty folder may be given
        write_atomic(draft / "two", lambda file: file.write(b"2"))
    assert (target / "two").read_bytes() == b"2"


def test_a_full_disk_is_said_and_the_old_file_stays(small_disk: Path) -> None:
    write_json(small_disk / "a.json", "old")
    with pytest.raises(OSError, match="No space left on device"):
        write_atomic(small_disk / "a.json", lambda file: file.write(os.urandom(2_000_000)))
    table = pa.table({"x": [os.urandom(100) for _ in range(20_000)]})
    with pytest.raises(OSError, match="No space left on device"):
        write_table(small_disk / "t.parquet", table)
    assert [p.name for p in small_disk.iterdir()] == ["a.json"]
    assert json.loads((small_disk / "a.json").read_text()) == "old"
