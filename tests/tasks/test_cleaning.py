"""What `paraclip artifacts gc` takes for rubbish, and what it leaves because somebody is using it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.locks import lock
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks.cleaning import Collected, collect, remove
from paraclip.tasks.run.run import Run, Stage, StageContext
from paraclip.tasks.run.stage import carry_out
from paraclip_core.config import Settings

FIRST = Draft("first", "a" * 32, 1, {}, {})
SECOND = Draft("second", "b" * 32, 1, {"first": "a" * 32, "source:captions.csv": "c" * 64}, {})
THIRD = Draft("third", "d" * 32, 1, {"second": "b" * 32}, {})


def made(store: ArtifactStore, *drafts: Draft) -> list[Artifact]:
    artifacts = []
    for draft in drafts:
        with store.writing(draft.stage, draft.fingerprint) as work:
            (work.out / "made.txt").write_text(draft.stage)
            artifacts.append(store.commit(draft, {}, 0.0))
    return artifacts


def names(collected: Collected) -> set[str]:
    return {item.stage for item in collected.rubbish}


def test_what_a_running_stage_reads_is_left(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    other = replace(FIRST, fingerprint="e" * 32)
    _, second, idle = made(store, FIRST, SECOND, other)
    seen: list[Collected] = []

    def body(context: StageContext) -> dict[str, Any]:
        seen.append(collect(store, unfinished=True))
        remove(seen[0].rubbish)
        return {"read": (context.inputs["second"].path / "made.txt").read_text()}

    stage = Stage("third", 1, lambda settings: ("second",), lambda settings: {}, body)
    done = carry_out(stage, THIRD, Run(Settings(), store), {"second": second})
    assert done.manifest.metrics == {"read": "second"}
    assert [item.fingerprint for item in seen[0].rubbish] == ["e" * 32] and not idle.path.exists()
    # What the input was made from stays with it, or its lineage would end there.
    assert [(kept.stage, kept.fingerprint) for kept in seen[0].left] == [
        ("first", "a" * 32),
        ("second", "b" * 32),
        ("third", "d" * 32),
    ]
    assert seen[0].left[1].why == f"third/{'d' * 32} is being made by process {os.getpid()} on {socket.gethostname()}"
    assert names(collect(store)) == {"first", "second", "third"} and collect(store).left == []


def test_what_a_dead_run_read_may_go(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made(store, FIRST)
    with pytest.raises(KeyboardInterrupt), store.writing("second", SECOND.fingerprint, reads=SECOND.inputs):
        raise KeyboardInterrupt
    path = store.work_path("second", SECOND.fingerprint).with_name(f"{SECOND.fingerprint}.lock")
    owner = {"pid": os.getpid(), "reads": {"first": "a" * 32}}
    with lock(path, info=owner):
        assert names(collect(store, unfinished=True)) == set()
    path.write_text(json.dumps(owner))
    assert names(collect(store, unfinished=True)) == {"first", "second"}


def test_what_a_run_under_way_needs_is_left(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made(store, FIRST, SECOND, replace(FIRST, fingerprint="e" * 32))
    with store.writing("third", THIRD.fingerprint) as work:
        (work.scratch / "step-1").touch()
    # Between two of its stages nobody holds a lock of theirs.
    with store.mark_run({"second": SECOND.fingerprint, "third": THIRD.fingerprint}):
        seen = collect(store, unfinished=True)
        assert [item.fingerprint for item in seen.rubbish] == ["e" * 32]
        why = f"a run under way needs it, process {os.getpid()} on {socket.gethostname()}"
        assert [(kept.stage, kept.why) for kept in seen.left] == [(n, why) for n in ("first", "second", "third")]
    assert names(collect(store, unfinished=True)) == {"first", "second", "third"}


def test_what_a_dead_run_needed_may_go(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made(store, FIRST)
    mark = tmp_path / "work" / "run" / "x.lock"
    mark.parent.mkdir(parents=True)
    mark.write_text(json.dumps({"pid": os.getpid(), "reads": {"first": FIRST.fingerprint}}))
    assert names(collect(store)) == {"first"}
    with store.mark_run({}):
        assert not mark.exists()


def test_what_a_commit_leaves_that_is_killed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            made(store, FIRST)
    work = store.work_path("first", FIRST.fingerprint)
    with pytest.raises(KeyboardInterrupt), store.writing("second", SECOND.fingerprint):
        raise KeyboardInterrupt
    young = collect(store, keep_days=1.0)
    assert [item.path for item in young.rubbish] == [work] and work.is_dir()
    assert remove(young.rubbish) == [] and not work.exists()
    assert store.resumable("second", SECOND.fingerprint) and [a.stage for a in store.list()] == ["first"]


def test_unfinished_work_that_was_begun_meanwhile_is_left_and_said(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made(store, FIRST)
    with pytest.raises(KeyboardInterrupt), store.writing("second", SECOND.fingerprint):
        raise KeyboardInterrupt
    collected = collect(store, unfinished=True)
    with store.writing("second", SECOND.fingerprint, reads=SECOND.inputs) as work:
        left = remove(collected.rubbish)
        assert work.out.is_dir() and (store.path("first", "a" * 32)).is_dir()
    assert {item.stage for item in left} == {"first", "second"}
    assert all("is held by process" in item.why or "is being made by" in item.why for item in left)


def test_unfinished_work_may_change_while_it_is_measured(tmp_path: Path) -> None:
    store, over = ArtifactStore(tmp_path), threading.Event()

    def work(folder: Path) -> None:
        while not over.is_set():
            for number in range(200):
                (folder / f"{number}.tmp").write_text("x")
            for number in range(200):
                (folder / f"{number}.tmp").unlink()

    with store.writing(FIRST.stage, FIRST.fingerprint) as made_here:
        stage = threading.Thread(target=work, args=(made_here.out,))
        stage.start()
        try:
            for _ in range(100):
                found = collect(store, unfinished=True)
                assert [(left.stage, left.fingerprint) for left in found.left] == [("first", FIRST.fingerprint)]
        finally:
            over.set()
            stage.join()


def test_what_something_was_made_from_meanwhile_is_left_and_said(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    other = replace(FIRST, fingerprint="e" * 32)
    _, idle = made(store, FIRST, other)
    collected = collect(store)
    assert names(collected) == {"first"} and len(collected.rubbish) == 2
    made(store, SECOND)
    left = remove(collected.rubbish)
    assert [(kept.fingerprint, kept.why) for kept in left] == [
        ("a" * 32, "a channel or an artifact has come to need it")
    ]
    assert store.path("first", "a" * 32).is_dir() and not idle.path.exists()
    collected = collect(store)
    store.set_channel("production", {"stage": "second", "fingerprint": SECOND.fingerprint})
    assert [kept.stage for kept in remove(collected.rubbish)] == ["first", "second"]


def two_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ArtifactStore]:
    stores = []
    for name in ("one", "two"):
        monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / name))
        stores.append(open_store(f"memory://{tmp_path.name}/root"))
    return stores


def test_what_another_machine_reads_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = two_machines(tmp_path, monkeypatch)
    made(one, FIRST)
    with one.writing("second", SECOND.fingerprint, reads=SECOND.inputs):
        collected = collect(two)
        assert names(collected) == set() and [kept.stage for kept in collected.left] == ["first"]
    assert names(collect(two)) == {"first"}


def test_what_a_run_on_another_machine_needs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = two_machines(tmp_path, monkeypatch)
    made(one, FIRST)
    with one.mark_run({"first": FIRST.fingerprint}):
        assert [kept.stage for kept in collect(two).left] == ["first"]
    assert names(collect(two)) == {"first"}
    assert two.remote is not None
    # A machine that was lost says nothing any more; how long ago its last heartbeat was is told by two clocks.
    owner = {"token": "t", "pid": 7, "host": "elsewhere", "reads": {"first": FIRST.fingerprint}}
    for ago, left in ((300, ["first"]), (3600, [])):
        told = owner | {"time": time.time() - ago}
        two.remote.write("locks/run/x/00000001", json.dumps(told).encode())
        assert [kept.stage for kept in collect(two).left] == left
    assert two.remote.sizes("locks") == {}
