"""Checkpoints on an object store: another machine goes on where one was lost."""

from __future__ import annotations

import json
import time

import pytest

from paraclip.storage import remote_store
from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.storage.remote_store import LOG
from paraclip.tasks.gc import collect, remove
from paraclip_core.errors import ArtifactError, LockedError
from tests.kit.machines import FP, Machine, Objects, make, refuse

TWO, FOUR = (f"scratch/checkpoints/step-0000000{step}.safetensors" for step in (2, 4))
WORK = {LOG: b"1\n2\n", TWO: b"two"}
LATER = {LOG: b"1\n2\n3\n4\n", FOUR: b"four"}
THEIRS = {"token": "theirs", "pid": 7, "host": "elsewhere", "time": 0.0}


def write(store: ArtifactStore, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = store.work_path("ingest", FP) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def interrupted(store: ArtifactStore, files: dict[str, bytes]) -> None:
    with pytest.raises(KeyboardInterrupt), store.writing("ingest", FP):
        write(store, files)
        raise KeyboardInterrupt


def work_files(store: ArtifactStore) -> dict[str, bytes]:
    folder = store.work_path("ingest", FP)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(objects: Objects) -> dict[str, bytes]:
    return {name.removeprefix(f"work/ingest/{FP}/"): objects.read(name) for name in objects.names("work")}


def test_another_machine_goes_on_from_the_checkpoints_alone(machine: Machine, objects: Objects) -> None:
    interrupted(machine("one"), {"out/a.txt": b"half", LOG: b"1\n"})
    assert objects.names() == [], "work without checkpoints stays on its machine"
    interrupted(machine("one"), WORK | {"out/a.txt": b"half", "scratch/rows/x.bin": b"half"})
    other = machine("two")
    assert other.resumable("ingest", FP) and [entry[:2] for entry in other.unfinished()] == [("ingest", FP)]
    with other.writing("ingest", FP):
        assert work_files(other) == WORK
        other.commit(Draft("ingest", FP, 1, {}, {}), {}, 1.0)
    assert objects.names("work") == [] and objects.names("locks") == []
    assert not other.resumable("ingest", FP)


def test_the_newest_checkpoint_counts_wherever_it_is(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    interrupted(one, WORK | {"scratch/rows": b"1"})
    write(one, LATER)
    with one.writing("ingest", FP):
        assert work_files(one) == WORK | LATER | {"scratch/rows": b"1"}
        (one.work_path("ingest", FP) / FOUR).unlink()
    interrupted(two, LATER)
    with one.writing("ingest", FP):
        assert work_files(one) == WORK | LATER | {"scratch/rows": b"1"}


def test_a_checkpoint_is_sent_once_and_goes_when_it_goes_here(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "PUSH_SECONDS", 0.0)
    interrupted(machine("one"), WORK)
    store, sent = machine("two"), []
    upload = store.remote.upload
    monkeypatch.setattr(store.remote, "upload", lambda files: (sent.extend(files), upload(files)))
    with store.writing("ingest", FP) as work:
        write(store, LATER)
        work.push()
        work.push()
        assert pushed(objects) == WORK | LATER
        (store.work_path("ingest", FP) / TWO).unlink()
        work.push()
        assert pushed(objects) == LATER
    assert sent == [f"work/ingest/{FP}/{FOUR}"]


def test_a_push_that_is_cut_off_leaves_the_checkpoint_before(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine("one")
    interrupted(store, WORK)
    monkeypatch.setattr(store.remote, "upload", refuse)
    (store.work_path("ingest", FP) / TWO).unlink()
    interrupted(store, LATER)
    assert "cannot push the checkpoints: the network is down" in caplog.text
    assert pushed(objects) == {LOG: LATER[LOG], TWO: WORK[TWO]}


def test_a_fetch_that_is_cut_off_leaves_what_is_here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = machine("one"), machine("two")
    interrupted(one, WORK)
    interrupted(two, LATER)
    with monkeypatch.context() as patched:
        patched.setattr(one.remote, "download", refuse)
        with pytest.raises(ArtifactError, match="network is down"), one.writing("ingest", FP):
            pytest.fail("it would begin anew, and others lose the newer checkpoint")
    assert work_files(one) == WORK and list((one.root / "incoming").glob("*")) == []


@pytest.mark.usefixtures("hasty")
def test_who_lost_the_lease_leaves_the_checkpoints_of_its_successor(machine: Machine, objects: Objects) -> None:
    """A machine slept, another one has gone on meanwhile, and the first one wakes and is interrupted."""
    with pytest.raises(KeyboardInterrupt), machine("one").writing("ingest", FP):
        write(machine("one"), WORK)
        objects.write(f"locks/ingest/{FP}/00000002", json.dumps(THEIRS).encode())
        objects.write(f"work/ingest/{FP}/{FOUR}", b"theirs")
        raise KeyboardInterrupt
    assert pushed(objects) == {FOUR: b"theirs"}


@pytest.mark.usefixtures("hasty")
def test_who_lost_the_lease_stops_at_its_next_report(machine: Machine, objects: Objects) -> None:
    taken_over = pytest.raises(LockedError, match="another machine has taken over")
    with taken_over, machine("one").writing("ingest", FP) as work:
        work.push()
        objects.write(f"locks/ingest/{FP}/00000002", json.dumps(THEIRS).encode())
        for _ in range(500):
            time.sleep(0.02)
            work.push()


def test_an_artifact_is_finished_though_its_checkpoints_cannot_be_deleted(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(machine("one"), WORK)
    store, other = machine("two"), machine("three")
    delete = store.remote.delete

    def refusing(paths: list[str]) -> None:
        for path in paths:
            refuse() if path.startswith("work/") else delete([path])

    monkeypatch.setattr(store.remote, "delete", refusing)
    artifact = make(store)
    assert "left-over checkpoints" in caplog.text
    assert not store.work_path("ingest", FP).exists() and other.find("ingest", FP) is not None
    assert store.verify(artifact) == []
    remove(collect(other).garbage, other)
    assert objects.names("work") == []


def test_discarded_work_is_gone_everywhere_without_a_download(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(machine("one"), WORK)
    other = machine("two")
    monkeypatch.setattr(other.remote, "download", lambda files: pytest.fail(f"downloads {files}"))
    remove(collect(other, unfinished=True).garbage, other)
    assert objects.names() == [] and not other.resumable("ingest", FP)
