"""What the runs under way need, stages that are not at work right now included, so that nobody deletes it meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from storage.locks import living_owner, lock
from storage.object_store import RemoteFolder
from storage.remote_lock import remote_lock

__all__ = ["RUN", "marked"]

RUN = "run"
"""Where a mark lies among the locks of stages: each is a lock that nobody else asks for."""


@contextmanager
def marked(work: Path, remote: RemoteFolder | None, needs: Mapping[str, str]) -> Iterator[None]:
    """Tell of a run that needs these artifacts, by stage and fingerprint, until the block ends or its process does.

    Raises:
        ArtifactError: the folder or the store cannot be written.
    """
    folder, name, says = work / RUN, uuid.uuid4().hex, {"reads": dict(needs)}
    for path in folder.glob("*.lock*"):  # drafts of killed processes, too
        if living_owner(path) is None:
            path.unlink(missing_ok=True)
    between = nullcontext() if remote is None else remote_lock(remote, f"locks/{RUN}/{name}", says=says)
    with lock(folder / f"{name}.lock", says=says), between:
        yield
