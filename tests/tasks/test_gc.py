"""What no channel needs is garbage, unless somebody uses it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks.channels import BY_PROMOTION, moved, rollback
from paraclip.tasks.gc import Collected, collect, remove

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


def test_unfinished_work_that_a_stage_holds_is_left(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    _, _, idle = made(store, FIRST, SECOND, replace(FIRST, fingerprint="e" * 32))
    store.set_channel("mine", {"stage": "second", "fingerprint": SECOND.fingerprint})
    with store.writing("third", THIRD.fingerprint) as work:
        (work.scratch / "step-1").touch()
        deleted = remove(collect(store, unfinished=True).garbage, store)
        assert [item.fingerprint for item in deleted] == ["e" * 32] and not idle.path.exists()
        (work.out / "made.txt").write_text("third")
        store.commit(THIRD, {}, 0.0)
    assert [artifact.stage for artifact in store.list()] == ["first", "second", "third"]


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
