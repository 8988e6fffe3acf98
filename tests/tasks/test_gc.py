"""What no channel needs is garbage, unless somebody uses it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.locks import lock
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks.channels import BY_PROMOTION, moved, rollback
from paraclip.tasks.gc import Collected, collect, remove
from paraclip.tasks.run.execute import execute
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


def promote(store: ArtifactStore, *letters: str) -> None:
    """Let the channel serve a run's model, one after the other."""
    for letter in letters:
        ingest, tuned, evaluation = (number + letter * 31 for number in "123")
        made(store, Draft("ingest", ingest, 1, {"source:captions.csv": "f" * 64}, {}))
        made(store, Draft("finetune", tuned, 1, {"ingest": ingest}, {}))
        made(store, Draft("evaluate", evaluation, 1, {"finetune": tuned}, {}))
        stages = {"ingest": ingest, "finetune": tuned, "evaluate": evaluation}
        store.set_channel("production", moved(store.channel("production"), stages, "promote", BY_PROMOTION))


@pytest.mark.parametrize("place", ["folder", "object store"])
def test_the_last_models_are_kept_with_what_they_need(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path))
    store = ArtifactStore(tmp_path) if place == "folder" else open_store(f"memory://{tmp_path.name}-gc/root")
    promote(store, *"abcde")

    def left(keep: int) -> str:
        garbage = {(one.stage, one.fingerprint[1]) for one in collect(store, keep_models=keep).garbage}
        letters = {letter for _, letter in garbage}
        whole = {(stage, letter) for letter in letters for stage in ("ingest", "finetune", "evaluate")}
        assert garbage == whole, "a run goes whole"
        return "".join(sorted(set("abcde") - letters))

    assert (left(0), left(1), left(3), left(9)) == ("e", "de", "bcde", "abcde")
    # A model that a rollback left counts, too.
    rollback(store, "production", "2ccc")
    assert left(1) == "ce"
    remove(collect(store).garbage, store)
    assert store.named("production").fingerprint[1] == "c"
    assert rollback(store, "production")["after"][1] == "b"


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
    done = execute(stage, THIRD, Run(Settings(), store), {"second": second})
    assert done.manifest.metrics == {"read": "second"}
    assert [item.fingerprint for item in seen[0].garbage] == ["e" * 32] and not idle.path.exists()
    # What the input was made from stays with it, or its lineage would end there.
    in_use = [("first", "a" * 32), ("second", "b" * 32), ("third", "d" * 32)]
    assert [(skipped.stage, skipped.fingerprint) for skipped in seen[0].skipped] == in_use
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


def test_unfinished_work_is_abandoned_after_a_while(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.writing("second", SECOND.fingerprint) as work:
        (work.scratch / "step-1").touch()
        raise KeyboardInterrupt
    assert names(collect(store, keep_days=1.0, unfinished=True)) == set()
    old = time.time() - 2 * 24 * 3600
    for path in (work.scratch / "step-1", work.scratch, work.out, work.out.parent):
        os.utime(path, (old, old))
    assert names(collect(store, keep_days=1.0, unfinished=True)) == {"second"}
    assert names(collect(store, keep_days=1.0)) == set()


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
        assert [(skipped.stage, skipped.used) for skipped in seen.skipped] == [
            (n, why) for n in ("first", "second", "third")
        ]
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
