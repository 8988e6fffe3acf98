"""Prefect for a run without a server of its own: quiet, local, and silent towards the network."""

from __future__ import annotations

import os
from pathlib import Path

from flows.household import living_api_url
from storage.atomic import storage_error

__all__ = ["local_environment", "prepare_prefect"]


def local_environment() -> dict[str, str]:
    """Settings that keep Prefect off the network, server or not."""
    return {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def prepare_prefect(root: Path) -> None:
    """Set Prefect's environment; call it before anything imports prefect.

    A server named by PREFECT_API_URL, or started by `paraclip serve` under the same root, is used, so that the run is
    seen there. Otherwise Prefect starts a temporary server, whose database stays under the root.

    Raises:
        ArtifactError: the root cannot be written.
    """
    home = root.absolute() / "prefect" / "local"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, home) from error
    chosen = {**local_environment(), "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL"}
    if "PREFECT_API_URL" not in os.environ:
        url = living_api_url(root)
        if url is None:
            chosen |= {
                "PREFECT_HOME": str(home),
                "PREFECT_LOGGING_TO_API_ENABLED": "false",
                "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            }
        else:
            chosen["PREFECT_API_URL"] = url
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
