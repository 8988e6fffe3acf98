"""Who is making what right now, and from which artifacts: the owners of the locks of unfinished work and of runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.locks import STALE_SECONDS, is_dead, living_owner, parse_owner
from storage.object_store import RemoteFolder
from storage.run_marks import RUN

__all__ = ["Holder", "holders_at", "holders_below"]


@dataclass(frozen=True)
class Holder:
    """A living process that makes an artifact, or goes through the stages of a run."""

    stage: str
    """`run` for a run."""
    fingerprint: str
    reads: Mapping[str, str]
    """Stage and fingerprint of the artifacts that it reads, or all those that a run is made of."""
    who: str
    """Its process and machine, for people."""

    @property
    def description(self) -> str:
        """What it is doing, for people."""
        if self.stage == RUN:
            return f"a run under way needs it, {self.who}"
        return f"{self.stage}/{self.fingerprint} is being made by {self.who}"


def holders_below(work: Path) -> Iterator[Holder]:
    """Holders of the locks in a root's folder of unfinished work."""
    for path in sorted(work.glob("*/*.lock")):
        owner = living_owner(path)
        if owner is not None:
            yield _holder(path.parent.name, path.stem, owner)


def holders_at(remote: RemoteFolder) -> Iterator[Holder]:
    """Holders of the locks between machines; one of a lost machine counts until its last heartbeat is ten minutes old.

    Raises:
        ArtifactError: the store cannot be read.
    """
    last: dict[tuple[str, str], str] = {}
    for path in sorted(remote.sizes("locks")):
        stage, _, rest = path.partition("/")
        fingerprint, _, number = rest.partition("/")
        if number.isdecimal():
            last[stage, fingerprint] = f"locks/{path}"
    told = remote.read_all(last.values())
    for (stage, fingerprint), path in last.items():
        owner = parse_owner(told.get(path, b""))
        if owner and not is_dead(owner, _silence(owner), STALE_SECONDS):
            yield _holder(stage, fingerprint, owner)


def _silence(owner: Mapping[str, Any]) -> float:
    """Seconds since an owner's last heartbeat; none where it does not tell the time."""
    beaten = owner.get("time")
    return time.time() - beaten if isinstance(beaten, int | float) else 0.0


def _holder(stage: str, fingerprint: str, owner: Mapping[str, Any]) -> Holder:
    reads = owner.get("reads")
    found = {str(name): str(value) for name, value in reads.items()} if isinstance(reads, dict) else {}
    return Holder(stage, fingerprint, found, f"process {owner.get('pid')} on {owner.get('host')}")
