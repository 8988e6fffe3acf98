"""Makes an artifact once, however many processes want it: finds it, or locks it, goes on with it and commits it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft, WorkFolder
from paraclip_core.errors import InputError
from paraclip_core.progress import Fact, Progress, silent


def make_once(
    store: ArtifactStore,
    draft: Draft,
    body: Callable[[WorkFolder, Progress], dict[str, Any]],
    progress: Progress = silent,
    changed: Callable[[], str] = str,
) -> tuple[Artifact, bool]:
    """Return the artifact of a draft, and whether this process made it.

    If it is not finished, `body` goes on with it in its work folder and returns its metrics. `changed` names the
    sources that differ from the draft's; if there are any, nothing is committed.
    """
    if (artifact := store.find(draft.stage, draft.fingerprint)) is not None:
        return artifact, False
    waiting = partial(progress, 0, None, waiting="for another run of the same stage")
    with store.writing(draft.stage, draft.fingerprint, waiting) as work:
        # Another process may have finished it while this one waited for the lock.
        if (artifact := store.find(draft.stage, draft.fingerprint)) is not None:
            return artifact, False
        started = time.monotonic()
        if names := changed():
            raise InputError(f"{names} changed since this run began; run again to take it as it is now")

        def report(done: int, total: int | None, **facts: Fact) -> None:
            # The body reports between writes, so its checkpoints may be pushed now.
            progress(done, total, **facts)
            work.push()

        metrics = body(work, report)
        if names := changed():
            # Otherwise its parts would be taken for the file's earlier contents if those return.
            for folder in (work.out, work.scratch):
                shutil.rmtree(folder)
                folder.mkdir()
            raise InputError(f"{names} changed while {draft.stage} read it; run again to take it as it is now")
        return store.commit(draft, metrics, time.monotonic() - started), True
