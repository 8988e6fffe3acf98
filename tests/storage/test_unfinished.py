"""Unfinished work on an object store: another machine goes on where one was lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from machines import FP, WORK, Machine, Objects, contents, interrupted, make, refuse, work_files

from paraclip.storage import unfinished
from paraclip.storage.artifacts import Draft
from paraclip.tasks.cleaning import collect, remove
from paraclip_core.errors import LockedError


def test_another_machine_goes_on(machine: Machine, objects: Objects) -> None:
    interrupted(machine("one"), WORK)
    other = machine("two")
    assert other.resumable("ingest", FP)
    assert [entry[:2] for entry in other.unfinished()] == [("ingest", FP)]
    with other.writing("ingest", FP):
        assert work_files(other) == WORK
        other.commit(Draft("ingest", FP, 1, {}, {}), {}, 1.0)
    assert objects.names("work") == [] and objects.names("locks") == []
    assert not other.resumable("ingest", FP)
    found = machine("one").find("ingest", FP)
    assert found is not None and contents(found)["a.txt"] == b"half"


def test_the_machine_that_pushed_goes_on_from_what_it_has(machine: Machine) -> None:
    store = machine("one")
    interrupted(store, WORK)
    newer = store.work_path("ingest", FP) / "scratch" / "state.json"
    newer.write_bytes(b"8")
    with store.writing("ingest", FP):
        assert newer.read_bytes() == b"8"


def test_what_another_machine_went_on_with_counts(machine: Machine) -> None:
    interrupted(machine("one"), WORK)
    interrupted(machine("two"), {"scratch/state.json": b"9", "out/new.txt": b"new"})
    store = machine("one")
    with store.writing("ingest", FP):
        assert work_files(store) == WORK | {"scratch/state.json": b"9", "out/new.txt": b"new"}


def test_equal_and_unchanged_files_are_sent_once(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(machine("one"), WORK)
    assert len(objects.names(f"work/ingest/{FP}/objects")) == 2
    store, sent = machine("one"), []
    upload = store.remote.upload
    monkeypatch.setattr(store.remote, "upload", lambda files: (sent.extend(files.values()), upload(files)))
    interrupted(store, {"scratch/state.json": b"8"})
    assert [path.name for path in sent] == ["state.json"]
    # The object of the old state is gone with it.
    assert len(objects.names(f"work/ingest/{FP}/objects")) == 2


def test_a_push_that_is_cut_off_leaves_the_one_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(machine("one"), WORK)
    store = machine("one")
    monkeypatch.setattr(store.remote, "upload", refuse)
    interrupted(store, {"scratch/state.json": b"8"})
    assert "network is down" in caplog.text
    other = machine("two")
    with other.writing("ingest", FP):
        assert work_files(other) == WORK


def test_a_folder_that_cannot_be_listed_is_not_pushed_as_an_empty_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(machine("one"), WORK)
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if str(path).endswith("/scratch"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scandir(path)

    with monkeypatch.context() as broken:
        broken.setattr(os, "scandir", failing)
        interrupted(machine("one"), {"out/a.txt": b"another"})
    assert "unfinished work is not pushed: [Errno 5]" in caplog.text
    other = machine("two")
    with other.writing("ingest", FP):
        assert work_files(other) == WORK


def test_a_damaged_snapshot_is_left_and_said(
    machine: Machine, objects: Objects, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(machine("one"), WORK)
    lost = objects.names(f"work/ingest/{FP}/objects")[0]
    objects.delete(lost)
    store = machine("two")
    with store.writing("ingest", FP):
        assert work_files(store) == {}
    assert f"unfinished work {url}/work/ingest/{FP} cannot be taken over" in caplog.text
    assert list((store.root / "incoming").glob("*")) == []


def test_work_is_pushed_while_the_stage_runs(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(unfinished.PUSH_VARIABLE, "0")
    store = machine("one")
    with store.writing("ingest", FP) as work:
        (work.scratch / "state.json").write_bytes(b"1")
        (work.out / "log").write_bytes(b"line 1\n")
        work.push()
        # The stage goes on while the upload is under way: files grow, and old checkpoints go.
        with (work.out / "log").open("ab") as log:
            log.write(b"line 2\n")
        (work.scratch / "state.json").unlink()
        for thread in threading.enumerate():
            if thread.name == "push":
                thread.join()
        # The machine is lost here: what it holds is copied as it was left.
        elsewhere = machine("two")
        copy = unfinished.UnfinishedWork(
            elsewhere.remote, f"work/ingest/{FP}", elsewhere.work_path("ingest", FP), tmp_path / "desks"
        )
        copy.pull()
    found = work_files(elsewhere)
    assert found["scratch/state.json"] == b"1" and found["out/log"] in (b"line 1\n", b"line 1\nline 2\n")


def test_what_a_killed_process_left_is_pushed_by_its_parent(machine: Machine) -> None:
    store = machine("one")
    scratch = store.work_path("ingest", FP) / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "state.json").write_bytes(b"7")
    store.push_unfinished("ingest", FP)
    other = machine("two")
    with other.writing("ingest", FP):
        assert work_files(other) == {"scratch/state.json": b"7"}


@pytest.mark.usefixtures("hasty")
def test_who_lost_the_lease_leaves_the_work_of_its_successor(
    machine: Machine, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine slept, another one has gone on meanwhile, and the first one wakes and is interrupted."""
    told = {"token": "theirs", "pid": 7, "host": "elsewhere", "time": 0.0}
    with pytest.raises(KeyboardInterrupt), machine("one").writing("ingest", FP) as work:
        (work.out / "a.txt").write_bytes(b"old")
        objects.write(f"locks/ingest/{FP}/00000002", json.dumps(told).encode())
        objects.write(f"work/ingest/{FP}/snapshot.json", b"theirs")
        raise KeyboardInterrupt
    assert objects.names("work") == [f"work/ingest/{FP}/snapshot.json"]
    assert objects.read(f"work/ingest/{FP}/snapshot.json") == b"theirs"
    assert "is another machine's by now" in caplog.text


@pytest.mark.usefixtures("hasty")
def test_who_lost_the_lease_stops_at_its_next_report(machine: Machine, objects: Objects) -> None:
    told = {"token": "theirs", "pid": 7, "host": "elsewhere", "time": 0.0}
    with pytest.raises(LockedError, match="another machine has gone on"), machine("one").writing("ingest", FP) as work:
        work.push()
        objects.write(f"locks/ingest/{FP}/00000002", json.dumps(told).encode())
        for _ in range(500):
            time.sleep(0.02)
            work.push()


def test_an_artifact_is_finished_though_its_unfinished_work_cannot_be_deleted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(machine("one"), WORK)
    store = machine("two")
    monkeypatch.setattr(store.remote, "delete", refuse)
    made = make(store)
    assert "left-over unfinished work" in caplog.text
    assert not store.work_path("ingest", FP).exists() and machine("three").find("ingest", FP) is not None
    assert store.verify(made) == []


@pytest.mark.parametrize("part", ["snapshot.json", "objects/0a1b"])
def test_what_a_killed_push_or_removal_left_is_found_and_goes(machine: Machine, objects: Objects, part: str) -> None:
    objects.write(f"work/ingest/{FP}/{part}", b"half")
    store = machine("one")
    assert [entry[:2] for entry in store.unfinished()] == [("ingest", FP)]
    assert remove(collect(store, unfinished=True).rubbish) == []
    assert objects.names() == [] and store.unfinished() == []


def test_discarded_work_is_gone_everywhere_without_a_download(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(machine("one"), WORK)
    other = machine("two")
    monkeypatch.setattr(other.remote, "download", lambda files: pytest.fail(f"downloads {files}"))
    other.discard("ingest", FP)
    assert objects.names() == [] and not other.resumable("ingest", FP)


@pytest.mark.usefixtures("hasty")
def test_the_work_of_a_lost_machine_can_be_discarded(machine: Machine, objects: Objects) -> None:
    interrupted(machine("one"), WORK)
    told = {"token": "theirs", "pid": 7, "host": "elsewhere", "time": 0.0}
    objects.write(f"locks/ingest/{FP}/00000001", json.dumps(told).encode())
    machine("two").discard("ingest", FP)
    assert objects.names() == []


def test_a_stage_may_report_while_its_folder_is_being_made_anew(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(unfinished.PUSH_VARIABLE, "0")
    with machine("one").writing("ingest", FP) as work:
        (work.scratch / "state.json").write_bytes(b"1")
        work.out.rmdir()
        for _ in range(3):
            work.push()
            for thread in threading.enumerate():
                if thread.name == "push":
                    thread.join()
        assert f"work/ingest/{FP}/snapshot.json" in objects.names("work")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_was_pushed_as_work_is_not_sent_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(machine("one"), {"out/a.txt": b"alpha", "scratch/state.json": b"7"})
    store, sent = machine("one"), []
    upload = store.remote.upload
    monkeypatch.setattr(store.remote, "upload", lambda files: (sent.extend(files), upload(files)))
    made = make(store)
    assert sent == [f"artifacts/ingest/{FP}/sub/b.bin"]
    assert contents(make(machine("two"))) == contents(made)


def test_pushed_work_that_goes_away_is_sent_again(machine: Machine, objects: Objects) -> None:
    interrupted(machine("one"), {"out/a.txt": b"alpha"})
    store = machine("one")
    copy = store.remote.copy

    def late(wanted: dict[str, str]) -> None:
        for path in wanted.values():
            objects.delete(path)
        copy(wanted)

    store.remote.copy = late  # type: ignore[method-assign]
    made = make(store)
    assert contents(make(machine("two"))) == contents(made)
