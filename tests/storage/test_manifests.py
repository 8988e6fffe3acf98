"""Artifacts whose files or manifests are no longer those of the commit."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from machines import FP, make

from paraclip.storage.artifacts import ArtifactStore
from paraclip_core.errors import ArtifactError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "root")


def test_an_edit_of_the_same_size_is_found_and_with_the_time_put_back_by_verify(store: ArtifactStore) -> None:
    made = make(store)
    path = made.path / "a.txt"
    time_before = path.stat().st_mtime_ns
    path.write_bytes(b"ALPHA")
    with pytest.raises(ArtifactError, match=rf"ingest/{FP} is damaged: a\.txt was changed .* Delete .*{FP}"):
        store.find("ingest", FP)
    os.utime(path, ns=(time_before, time_before))
    assert store.find("ingest", FP) == made
    assert store.verify(made) == ["a.txt was changed (its SHA-256 differs)"]


def test_a_touched_or_copied_artifact_is_sound(store: ArtifactStore) -> None:
    made = make(store)
    os.utime(made.path / "a.txt", (time.time() + 1, time.time() + 1))
    assert store.find("ingest", FP) == made
    copy = ArtifactStore(store.root.parent / "copy")
    shutil.copytree(store.root, copy.root, copy_function=shutil.copyfile)
    found = copy.find("ingest", FP)
    assert found is not None
    assert copy.verify(found) == []


def test_cut_missing_and_extra_files(store: ArtifactStore) -> None:
    made = make(store)
    (made.path / "a.txt").write_bytes(b"alp")
    (made.path / "sub" / "b.bin").unlink()
    (made.path / "extra").write_text("")
    with pytest.raises(ArtifactError, match=r"a\.txt has 3 bytes instead of 5; sub/b\.bin is missing"):
        store.find("ingest", FP)
    assert store.verify(made) == [
        "a.txt has 3 bytes instead of 5",
        "sub/b.bin is missing",
        "extra is not in the manifest",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"manifest\.json"),
        ("[]", r"manifest\.json"),
        ('{"schema_version": 1, "files": []}', r"manifest\.json"),
        ('{"schema_version": 99}', r"schema version 99, this release reads 1; use the paraclip that wrote it"),
    ],
)
def test_a_damaged_manifest_is_refused_and_left_out_of_lists(
    store: ArtifactStore, content: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(store)
    other = make(store, "f" * 32)
    (made.path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        store.find("ingest", FP)
    assert store.list() == [other]
    assert FP in caplog.text
    ((stage, name, problem),) = store.unreadable()
    assert (stage, name) == ("ingest", FP) and "manifest.json" in problem


def test_an_artifact_under_a_wrong_name_is_refused(store: ArtifactStore) -> None:
    made = make(store)
    made.path.rename(made.path.with_name("f" * 32))
    with pytest.raises(ArtifactError, match=f"belongs to ingest/{FP}"):
        store.find("ingest", "f" * 32)
