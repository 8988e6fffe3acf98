"""How one stage is carried out: its artifact is found, or work goes on and is committed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import partial

from paraclip.storage.artifacts import Artifact, Draft, sources_of
from paraclip.storage.files import convert_disk_errors
from paraclip.tasks.run.run import Run, Stage, StageContext
from paraclip_core.errors import InputError
from paraclip_core.progress import Fact, Progress, silent


def carry_out(
    stage: Stage, draft: Draft, run: Run, inputs: Mapping[str, Artifact], progress: Progress = silent
) -> Artifact:
    """Return the stage's artifact if it is finished; otherwise go on from what is there and commit it."""
    store = run.store
    if (artifact := store.find(stage.name, draft.fingerprint)) is not None:
        return artifact
    waiting = partial(progress, 0, None, waiting="for another run of the same stage")
    with store.writing(stage.name, draft.fingerprint, waiting, draft.inputs) as work:
        # Another process may have finished it while this one waited for the lock.
        if (artifact := store.find(stage.name, draft.fingerprint)) is not None:
            return artifact
        started = time.monotonic()
        if changed := _changed_sources(stage, draft, run):
            raise InputError(f"{changed} changed since this run began; run again to take it as it is now")

        def report(done: int, total: int | None, **facts: Fact) -> None:
            # A stage reports between two writes, where its checkpoints may be pushed.
            progress(done, total, **facts)
            work.push()

        with convert_disk_errors(work.out):
            metrics = stage.body(StageContext(run, inputs, work, report))
        if changed := _changed_sources(stage, draft, run):
            # Parts of it would be taken for the file's earlier contents when these come back.
            for folder in (work.out, work.scratch):
                shutil.rmtree(folder)
                folder.mkdir()
            raise InputError(f"{changed} changed while {stage.name} read it; run again to take it as it is now")
        return store.commit(draft, metrics, time.monotonic() - started)


def _changed_sources(stage: Stage, draft: Draft, run: Run) -> str:
    """Names of the sources that are not what the fingerprint says; none where it does not tell of sources."""
    then = sources_of(draft.inputs)
    now = stage.sources(run) if then else {}
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
