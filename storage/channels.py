"""What a channel's file may say."""

from __future__ import annotations

from typing import Any

from paraclip_core.errors import ArtifactError

__all__ = ["as_channel"]


def as_channel(told: Any, where: str) -> dict[str, Any]:
    """What was read at `where`, as a channel.

    Raises:
        ArtifactError: it is no object, or its `stages` are none.
    """
    if not isinstance(told, dict) or not isinstance(told.get("stages", {}), dict):
        raise ArtifactError(f"{where} is no channel: expected an object with a fingerprint; restore or delete it")
    return told
