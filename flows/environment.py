"""The environment of Prefect for `paraclip run`: quiet, local, and silent towards the network."""

from __future__ import annotations

import os
from pathlib import Path

from paraclip.flows.local_server import start_local_server
from paraclip.flows.local_stack import HEARTBEAT, PASSWORD_VARIABLE, client_environment
from paraclip.storage.files import storage_error
from paraclip_core.errors import ConfigError

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
}


def prepare_prefect(root: Path) -> None:
    """Set Prefect's environment; call it before anything imports prefect.

    A server named by PREFECT_API_URL, or started by `paraclip serve` under the same root, is used, so that the run is
    seen there. Otherwise one is started for this run alone.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, root) from error
    quiet, server = dict(QUIET), {}
    if "PREFECT_API_URL" not in os.environ and not (server := client_environment(root)):
        quiet["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        server = start_local_server(quiet)
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    # Its address, password and folder, whatever the user's own are.
    os.environ.update(server)


def check_server() -> None:
    """See that the server takes this client; call it after :func:`prepare_prefect`, it imports prefect."""
    from prefect import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except Exception as error:
        # Something else that answers there makes Prefect's client raise whatever it stumbles over.
        url = os.environ["PREFECT_API_URL"]
        if "Unauthorized" in str(error):
            raise ConfigError(
                f"the Prefect server {url} refuses the password; set {PASSWORD_VARIABLE} to the one that "
                f"PREFECT_SERVER_API_AUTH_STRING gave the server when it started, for example admin:PASSWORD"
            ) from error
        raise ConfigError(
            f"the Prefect server {url} does not take this run: {error}. See whether it runs and whether "
            f"{PASSWORD_VARIABLE} is its password, or unset PREFECT_API_URL for a server of the run's own"
        ) from error
