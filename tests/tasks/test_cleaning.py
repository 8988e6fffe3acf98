"""What `paraclip artifacts gc` takes for garbage, and what it skips because somebody is using it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.locks import lock
from paraclip.tasks.channels import Collected, collect, remove
from paraclip.tasks.run.dag import carry_out
from paraclip.tasks.run.run import Run, Stage, StageContext
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
    return {item.stage for item in collected.garbage}


def test_what_a_running_stage_reads_is_left(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    other = replace(FIRST, fingerprint="e" * 32)
    _, second, idle = made(store, FIRST, SECOND, other)
    seen: list[Collected] = []

    def body(context: StageContext) -> dict[str, Any]:
        seen.append(collect(store, unfinished=True))
        remove(seen[0].garbage, context.store)
        return {"read": (context.inputs["second"].path / "made.txt").read_text()}

    stage = Stage("third", 1, lambda settings: ("second",), lambda settings: {}, body)
    done = carry_out(stage, THIRD, Run(Settings(), store), {"second": second})
    assert done.manifest.metrics == {"read": "second"}
    assert [item.fingerprint for item in seen[0].garbage] == ["e" * 32] and not idle.path.exists()
    # What the input was made from stays with it, or its lineage would end there.
    kept = [("first", "a" * 32), ("second", "b" * 32), ("third", "d" * 32)]
    assert [(skipped.stage, skipped.fingerprint) for skipped in seen[0].skipped] == kept
    assert f"third/{'d' * 32} is being made by process {os.getpid()} on" in str(seen[0].skipped[1].used)
    assert names(collect(store)) == {"first", "second", "third"} and collect(store).skipped == []


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
        assert [item.fingerprint for item in seen.garbage] == ["e" * 32]
        why = f"a run under way needs it, process {os.getpid()} on {socket.gethostname()}"
        assert [(kept.stage, kept.used) for kept in seen.skipped] == [(n, why) for n in ("first", "second", "third")]
    assert names(collect(store, unfinished=True)) == {"first", "second", "third"}


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
    assert [item.path for item in young.garbage] == [work] and work.is_dir()
    remove(young.garbage, store)
    assert not work.exists()
    assert store.resumable("second", SECOND.fingerprint) and [a.stage for a in store.list()] == ["first"]
