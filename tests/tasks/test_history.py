"""Every move of a channel is kept, it can go back, and what no channel needs is garbage unless somebody uses it."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.locks import lock
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks.channels import (
    BY_PROMOTION,
    BY_ROLLBACK,
    MOVES,
    Collected,
    collect,
    history,
    models,
    moved,
    remove,
    rollback,
    withdrawn,
)
from paraclip.tasks.publish import in_flow_run
from paraclip.tasks.run.dag import carry_out
from paraclip.tasks.run.run import Run, Stage, StageContext
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, UnknownNameError

A, B, C, D, E = (letter * 32 for letter in "abcde")


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    if request.param == "folder":
        return ArtifactStore(tmp_path)
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path))
    return open_store(f"memory://{tmp_path.name}-history/root")


def model(store: ArtifactStore, fingerprint: str) -> dict[str, str]:
    """A run whose model has this fingerprint; the fingerprints of its stages."""
    ingest, evaluation = "1" + fingerprint[1:], "2" + fingerprint[1:]
    drafts = (
        Draft("ingest", ingest, 1, {"source:captions.csv": "f" * 64}, {}),
        Draft("finetune", fingerprint, 1, {"ingest": ingest}, {}),
        Draft("evaluate", evaluation, 1, {"finetune": fingerprint}, {}),
    )
    for draft in drafts:
        if store.find(draft.stage, draft.fingerprint):
            continue
        with store.writing(draft.stage, draft.fingerprint):
            store.commit(draft, {}, 0.0)
    return {"ingest": ingest, "finetune": fingerprint, "evaluate": evaluation}


def promote(store: ArtifactStore, *fingerprints: str, by: str = BY_PROMOTION) -> None:
    for fingerprint in fingerprints:
        value = moved(store.channel("production"), model(store, fingerprint), "promote", by, f"for {fingerprint[0]}")
        store.set_channel("production", value)


def channel(store: ArtifactStore) -> dict[str, Any]:
    return store.channel("production") or {}


def served(store: ArtifactStore) -> Any:
    return channel(store)["fingerprint"]


def test_every_move_tells_who_when_and_why(store: ArtifactStore) -> None:
    promote(store, A, B)
    promote(store, B)  # serves it already
    first, second = history(channel(store))
    assert (first.before, first.after, second.before, second.after) == (None, A, A, B)
    assert (second.by, second.verdict, second.reason) == ("promotion", "promote", "for b")
    assert second.who == f"{getpass.getuser()}@{socket.gethostname()}" and second.flow_run is None
    assert second.at is not None and second.stages["evaluate"] == "2" + B[1:]
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(second.at) < timedelta(minutes=5)
    assert channel(store)["before"] == A and channel(store)["reason"] == "for b"


def test_a_history_has_a_bound() -> None:
    value: dict[str, Any] = {}
    for number in range(MOVES + 5):
        value = moved(value, {"finetune": f"{number:032}"}, "promote", BY_PROMOTION)
    assert len(history(value)) == MOVES and history(value)[-1].after == value["fingerprint"]
    assert len(models(value)) == MOVES


def test_a_rollback_goes_to_the_model_before_and_is_a_move(store: ArtifactStore) -> None:
    promote(store, A, B, C)
    decision = rollback(store, "production")
    reason = f"rolled back from {C} to {B}"
    assert decision == {"channel": "production", "moved": True, "reason": reason, "before": C, "after": B}
    value = channel(store)
    last = history(value)[-1]
    assert (last.by, last.before, last.after, last.reason) == (BY_ROLLBACK, C, B, decision["reason"])
    assert value["stages"] == model(store, B) and value["verdict"] == "promote"
    assert value["moved_by"] == BY_PROMOTION, "it still belongs to promotions"
    assert store.named("production").fingerprint == B
    # Once more goes further back, not forth.
    assert rollback(store, "production")["after"] == A
    with pytest.raises(ArtifactError, match=f"has served no model before {A}; .*promote --force"):
        rollback(store, "production")
    promote(store, D)
    assert rollback(store, "production")["after"] == A
    # A model that is gone is refused.
    promote(store, B, C)
    store.remove(store.resolve(f"finetune/{B}"))
    before = channel(store)
    with pytest.raises(ArtifactError, match=f"the model {B} is gone from .*, so 'production' stays as it is"):
        rollback(store, "production")
    assert channel(store) == before


def test_a_rollback_to_a_model_by_name(store: ArtifactStore) -> None:
    promote(store, A, B, C)
    assert rollback(store, "production", A[:6])["after"] == A
    assert withdrawn(channel(store), C) and not withdrawn(channel(store), A)
    # Forth again, which takes back that it was left.
    assert rollback(store, "production", f"finetune/{C[:6]}")["after"] == C
    assert withdrawn(channel(store), C) is None
    decision = rollback(store, "production", C)
    assert (
        not decision["moved"]
        and decision["reason"] == f"kept: it serves {C} already"
        and len(history(channel(store))) == 5
    )
    # A model that it never served moves by hand alone.
    model(store, E)
    for name in ("eee", "ingest/1a"):
        with pytest.raises(UnknownNameError, match=r"begins 0 models .*promote --force"):
            rollback(store, "production", name)
    with pytest.raises(UnknownNameError, match=r"no channel .* is named 'prodution'; there are production"):
        rollback(store, "prodution")
    assert served(store) == C


def test_a_retried_flow_run_goes_back_once(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    promote(store, A, B, C)
    seen: list[str] = []

    @flow
    def back() -> None:
        assert in_flow_run()
        seen.extend(rollback(store, "production")["after"] for _ in range(2))

    with prefect_server():
        back()
    last = history(channel(store))[-1]
    assert seen == [B, B] and served(store) == B and last.flow_run is not None
    rollback(store, "production")
    assert served(store) == A


def test_gc_keeps_the_last_models_with_what_they_need(store: ArtifactStore) -> None:
    promote(store, A, B, C, D, E)

    def left(keep: int) -> set[str]:
        garbage = {(item.stage, item.fingerprint[1:]) for item in collect(store, keep_models=keep).garbage}
        whole = {(stage, name[1:]) for name in (A, B, C, D, E) for stage in ("ingest", "finetune", "evaluate")}
        assert garbage <= whole and len(garbage) % 3 == 0, "a run goes whole"
        return {name[1:2] for _, name in whole - garbage}

    assert (left(0), left(1), left(3), left(9)) == (set("e"), set("de"), set("bcde"), set("abcde"))
    # A model that a rollback left counts, too.
    rollback(store, "production", C)
    assert left(1) == set("ce")
    remove(collect(store).garbage, store)
    assert served(store) == C and rollback(store, "production")["after"] == B


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
