"""Who is making what right now, and from which artifacts: the owners of the locks of unfinished work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.filesystems import RemoteFolder
from storage.locks import is_dead, living_owner, parse_owner

__all__ = ["Holder", "holders_at", "holders_below"]


@dataclass(frozen=True)
class Holder:
    """A living process that makes an artifact."""

    stage: str
    fingerprint: str
    reads: Mapping[str, str]
    """Stage and fingerprint of the artifacts that it reads."""
    who: str
    """Its process and machine, for people."""


def holders_below(work: Path) -> Iterator[Holder]:
    """Holders of the locks in a root's folder of unfinished work."""
    for path in sorted(work.glob("*/*.lock")):
        owner = living_owner(path)
        if owner is not None:
            yield _holder(path.parent.name, path.stem, owner)


def holders_at(remote: RemoteFolder) -> Iterator[Holder]:
    """Holders of the locks between machines; one of a lost machine counts until somebody waited for it in vain.

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
        if owner and not is_dead(owner, 0.0, 1.0):
            yield _holder(stage, fingerprint, owner)


def _holder(stage: str, fingerprint: str, owner: Mapping[str, Any]) -> Holder:
    reads = owner.get("reads")
    found = {str(name): str(value) for name, value in reads.items()} if isinstance(reads, dict) else {}
    return Holder(stage, fingerprint, found, f"process {owner.get('pid')} on {owner.get('host')}")
