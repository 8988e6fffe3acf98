"""The artifact store: whole artifacts or none, whatever is killed, edited, full, read-only or done twice at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft, FileEntry
from paraclip_core.errors import ArtifactError, UnknownNameError
from tests.kit.machines import AT_ONCE, FP, contents

CONTENT = {"a.txt": b"alpha", "sub/b.bin": bytes(range(256)), "sub/manifest.json": b"{}"}


def draft(fingerprint: str = FP, stage: str = "ingest") -> Draft:
    return Draft(stage, fingerprint, 1, {"source": "s"}, {"words": [2, 15]}, {"paraclip": "0"})


def fill(out: Path) -> None:
    for name, content in CONTENT.items():
        if not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)


def make(store: ArtifactStore, fingerprint: str = FP, stage: str = "ingest") -> Artifact:
    """What a stage does: find it, or else resume and commit it."""
    if (artifact := store.find(stage, fingerprint)) is not None:
        return artifact
    with store.writing(stage, fingerprint) as work:
        fill(work.out)
        (work.scratch / "state").write_text("resumable")
        return store.commit(draft(fingerprint, stage), {"rows": 3}, 1.23456)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "root")


def test_committed_found_and_described(store: ArtifactStore) -> None:
    assert store.find("ingest", FP) is None
    artifact = make(store)
    reopened = store.find("ingest", FP)
    assert reopened == artifact
    assert reopened is not None
    assert (reopened.stage, reopened.fingerprint, reopened.path) == ("ingest", FP, store.path("ingest", FP))
    manifest = reopened.manifest
    assert set(manifest.files) == set(CONTENT)
    assert manifest.files["a.txt"] == FileEntry(5, "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8")
    assert manifest.size() == sum(map(len, CONTENT.values()))
    assert (manifest.metrics, manifest.wall_seconds, manifest.inputs) == ({"rows": 3}, 1.235, {"source": "s"})
    assert (manifest.options, manifest.versions) == ({"words": [2, 15]}, {"paraclip": "0"})
    assert not store.resumable("ingest", FP)
    assert store.unfinished() == []
    assert store.verify(reopened) == []


def test_a_power_cut_takes_nothing_of_an_artifact(store: ArtifactStore, on_disk: Callable[[Path], bool]) -> None:
    artifact = make(store)
    entries = [artifact.path.parent, artifact.path, *artifact.path.rglob("*")]
    assert len(entries) > len(CONTENT) + 3  # folders are among them, whose names are to stay, too
    assert [path.name for path in entries if not on_disk(path)] == []


def test_unfinished_work_is_kept_and_gone_on_with(store: ArtifactStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.writing("ingest", FP) as work:
        (work.out / "a.txt").write_bytes(b"from the first try")
        (work.out / "sub").mkdir()
        (work.out / "sub" / ".b.bin.123.tmp").write_text("half")
        (work.scratch / "state").write_text("7")
        raise KeyboardInterrupt
    assert store.resumable("ingest", FP)
    assert store.unfinished() == [("ingest", FP, store.work_path("ingest", FP))]
    with store.writing("ingest", FP) as work:
        assert (work.scratch / "state").read_text() == "7"
    artifact = make(store)
    assert (artifact.path / "a.txt").read_bytes() == b"from the first try"
    assert set(artifact.manifest.files) == set(CONTENT)


KILL_AT = """
import os, signal, sys
import paraclip.storage.artifacts as artifacts
from tests.storage.test_artifacts import *
before, point, call = sys.argv[2] == "before", sys.argv[3], int(sys.argv[4])
owner = Path if point == "rename" else artifacts.shutil if point == "rmtree" else artifacts
original, calls = getattr(owner, point), 0
def deadly(*arguments, **options):
    global calls
    calls += 1
    if before and calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    value = original(*arguments, **options)
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
setattr(owner, point, deadly)
store = ArtifactStore(sys.argv[1])
if sys.argv[5] == "make":
    make(store)
else:
    store.remove(store.resolve(FP))
"""


def killed(store: ArtifactStore, when: str, point: str, call: int, action: str = "make") -> None:
    command = [sys.executable, "-c", KILL_AT, str(store.root), when, point, str(call), action]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL


STEPS = [("remove_temporary", 2), ("seal", 3), ("write_json", 1), ("rename", 1), ("sync_folder", 2), ("rmtree", 1)]
DAILY = {("before", "rename"), ("after", "rename"), ("after", "seal")}


@pytest.mark.parametrize(
    ("when", "point", "call"),
    [
        pytest.param(when, *step, marks=() if (when, step[0]) in DAILY else pytest.mark.nightly)
        for when in ("before", "after")
        for step in STEPS
    ],
)
def test_killed_at_every_step_of_a_commit(
    store: ArtifactStore, tmp_path: Path, when: str, point: str, call: int
) -> None:
    killed(store, when, point, call)
    renamed = (point, when) in {("rename", "after"), ("sync_folder", "before"), ("sync_folder", "after")}
    assert (store.find("ingest", FP) is not None) == (renamed or point == "rmtree")
    started = time.monotonic()
    artifact = make(store)
    assert time.monotonic() - started < AT_ONCE
    undisturbed = contents(make(ArtifactStore(tmp_path / "other")))
    assert {n: c for n, c in contents(artifact).items() if n != "manifest.json"} == CONTENT
    ours, theirs = (json.loads(c["manifest.json"]) | {"created": ""} for c in (contents(artifact), undisturbed))
    assert ours == theirs
    assert store.verify(artifact) == []


@pytest.mark.parametrize(
    ("point", "when"),
    [
        ("rename", "after"),
        *(pytest.param(*at, marks=pytest.mark.nightly) for at in (("rename", "before"), ("rmtree", "before"))),
    ],
)
def test_a_removal_that_is_killed_never_leaves_half_an_artifact(store: ArtifactStore, point: str, when: str) -> None:
    make(store)
    killed(store, when, point, 1, "remove")
    gone = (point, when) != ("rename", "before")
    assert (store.find("ingest", FP) is None) == gone
    assert len(store.list()) == (0 if gone else 1)
    assert not store.resumable("ingest", FP)
    store.remove(make(store))
    assert list((store.root / "trash").iterdir()) == []


def test_a_folder_without_a_manifest_does_not_exist_and_is_not_resumed(store: ArtifactStore) -> None:
    artifact = make(store)
    (artifact.path / "a.txt").write_bytes(b"omega")
    (artifact.path / "manifest.json").unlink()  # as `rm -r` does that is cut off
    assert store.find("ingest", FP) is None
    assert (make(store).path / "a.txt").read_bytes() == b"alpha"


def test_the_second_gets_what_the_first_made(store: ArtifactStore) -> None:
    polled, artifacts = [], []

    def second() -> None:
        with store.writing("ingest", FP, poll=lambda: polled.append(1)):
            artifacts.append(store.find("ingest", FP))

    thread = threading.Thread(target=second)
    with store.writing("ingest", FP) as work:
        thread.start()
        while not polled:
            time.sleep(0.01)
        fill(work.out)
        artifact = store.commit(draft(), {"by": "the first"}, 1.0)
    thread.join(120)
    assert artifacts == [artifact] and make(store) == artifact
    assert not store.unfinished(), "who waited leaves no work of his own"


def test_artifacts_are_resolved_by_the_start_of_their_name(store: ArtifactStore) -> None:
    one, two = make(store, "aa11" + "0" * 28), make(store, "aa22" + "0" * 28)
    three = make(store, "aa11" + "0" * 28, "features")
    assert store.resolve("aa22") == two
    assert store.resolve("features/aa11") == store.resolve("features/") == three
    assert store.resolve("ingest/aa1") == one
    with pytest.raises(ArtifactError, match=r"2 artifacts .* 'aa11' \(features/aa110{8}, ingest/aa110{8}\); see"):
        store.resolve("aa11")
    for wrong in ("zz", "nothing/aa11", "../aa11", "aa11/", "/tmp/ingest/aa11", "*/aa11"):
        with pytest.raises(ArtifactError, match=r"no artifact under .*see `paraclip artifacts ls`"):
            store.resolve(wrong)


def test_channels_point_and_point_anew(store: ArtifactStore) -> None:
    store.set_channel("production", {"finetune": FP})
    store.set_channel("nightly", {"finetune": "x"})
    store.set_channel("production", {"finetune": "y"})
    assert store.channel("production") == {"finetune": "y"}
    assert store.channels() == {"nightly": {"finetune": "x"}, "production": {"finetune": "y"}}
    (store.root / "channels" / "production.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"production\.json is not valid JSON .*; restore or delete it$"):
        store.channel("production")
    for text in ("null", "[]", '{"stages": null}'):
        (store.root / "channels" / "production.json").write_text(text)
        for use in (store.channels, lambda: store.channel("production"), lambda: store.named("production")):
            with pytest.raises(ArtifactError, match=r"production\.json is not a channel: .*restore or delete it$"):
                use()


def test_a_channels_name_cannot_leave_its_folder(store: ArtifactStore) -> None:
    for name in ("", "..", "a/b", "a\\b", "a\0b", ".hidden", "ö" * 101):
        for use in (store.channel, lambda n: store.set_channel(n, {})):
            with pytest.raises(UnknownNameError):
                use(name)


def test_an_edit_of_the_same_size_is_found_and_with_the_time_put_back_by_verify(store: ArtifactStore) -> None:
    artifact = make(store)
    path = artifact.path / "a.txt"
    time_before = path.stat().st_mtime_ns
    path.write_bytes(b"ALPHA")
    with pytest.raises(ArtifactError, match=rf"ingest/{FP} is damaged: a\.txt was changed .* Delete .*{FP}"):
        store.find("ingest", FP)
    os.utime(path, ns=(time_before, time_before))
    assert store.find("ingest", FP) == artifact
    assert store.verify(artifact) == ["a.txt was changed (its SHA-256 differs)"]


def test_a_touched_or_copied_artifact_is_sound(store: ArtifactStore) -> None:
    artifact = make(store)
    os.utime(artifact.path / "a.txt", (time.time() + 1, time.time() + 1))
    assert store.find("ingest", FP) == artifact
    copy = ArtifactStore(store.root.parent / "copy")
    shutil.copytree(store.root, copy.root, copy_function=shutil.copyfile)
    copied = copy.find("ingest", FP)
    assert copied is not None
    assert copy.verify(copied) == []


def test_cut_missing_and_extra_files_and_a_wrong_name(store: ArtifactStore) -> None:
    artifact = make(store)
    moved = shutil.copytree(artifact.path, artifact.path.with_name("f" * 32))
    with pytest.raises(ArtifactError, match=f"belongs to ingest/{FP}"):
        store.find("ingest", moved.name)
    (artifact.path / "a.txt").write_bytes(b"alp")
    (artifact.path / "sub" / "b.bin").unlink()
    (artifact.path / "extra").write_text("")
    with pytest.raises(ArtifactError, match=r"a\.txt has 3 bytes instead of 5; sub/b\.bin is missing"):
        store.find("ingest", FP)
    problems = ["a.txt has 3 bytes instead of 5", "sub/b.bin is missing", "extra is not in the manifest"]
    assert store.verify(artifact) == problems


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
    artifact, other = make(store), make(store, "f" * 32)
    (artifact.path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        store.find("ingest", FP)
    assert store.list() == [other]
    assert FP in caplog.text
    ((stage, name, problem),) = store.unreadable()
    assert (stage, name) == ("ingest", FP) and "manifest.json" in problem


def test_a_read_only_root_is_read_and_not_written(small_disk: Path) -> None:
    store = ArtifactStore(small_disk)
    artifact = make(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert make(store) == artifact
    assert store.verify(artifact) == []
    with pytest.raises(OSError, match="Read-only file system"):
        make(store, "f" * 32)
    with pytest.raises(OSError, match="Read-only file system"):
        store.remove(artifact)
    assert store.find("ingest", FP) == artifact
