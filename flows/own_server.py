"""The Prefect server of a run that a command starts: a named or served one, or a temporary one.

Prefect's own temporary server shares its starter's process group, so Ctrl-C ends it first and the run then waits for
it for minutes. If its starter is killed, it stays for ever. The temporary server here has its own session and ends with
its starter. Its database is in a temporary folder, so that concurrent runs do not share it.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from paraclip.flows.local_stack import client_environment, client_variables, python_path, wait_for_server
from paraclip.flows.names import HOST, OWN_LOGGERS, PASSWORD_VARIABLE, SERVER_PASSWORD_VARIABLE, UNWATCHED
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir

QUIET = {**UNWATCHED, "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL"}
# A server for one run needs neither a UI nor blocks; registering blocks takes a second.
OWN = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
}


def prepare_prefect(root: Path) -> None:
    """Set Prefect's environment; call it before anything imports prefect.

    A server named by PREFECT_API_URL, or started by `paraclip serve` under the same root, is used, so that the run
    shows up there. Otherwise one is started for this run alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    quiet, server = dict(QUIET), {}
    if "PREFECT_API_URL" not in os.environ and not (server := client_environment(root)):
        quiet["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        server = start_local_server(quiet)
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    # Its address, password and folder, whatever the user's own are.
    os.environ.update(server)


def check_server() -> None:
    """Check that the server accepts this client. Call it after :func:`prepare_prefect`, because it imports prefect."""
    from prefect import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except Exception as error:
        # Something else that answers there makes Prefect's client raise whatever it stumbles over.
        raise ConfigError(
            f"the Prefect server {os.environ['PREFECT_API_URL']} does not accept this run: {error}. Check that it "
            f"runs and that {PASSWORD_VARIABLE} is the password that {SERVER_PASSWORD_VARIABLE} gave it, for example "
            "admin:PASSWORD; or unset PREFECT_API_URL, for `paraclip run` on a temporary server"
        ) from error


def start_local_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Start a server that ends with this process; returns the environment in which a client finds it.

    Call it before prefect is imported: the exit handler that is registered first runs last.
    """
    temp_dir = TempDir("prefect-")
    home, log = temp_dir.path, temp_dir.path / "server.log"
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    # Every page that a browser shows, and every user of this machine, reaches the port.
    password = f"admin:{secrets.token_hex(16)}"
    mine = {**OWN, SERVER_PASSWORD_VARIABLE: password, "PREFECT_HOME": str(home), "PYTHONPATH": python_path()}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "paraclip.flows.server", str(os.getpid()), str(port)],
            env={**os.environ, **environment, **mine},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    atexit.register(_end_server, server, temp_dir)
    url = f"http://{HOST}:{port}"
    wait_for_server(server, url, log)
    return {"PREFECT_HOME": str(home), **client_variables(url, password)}


def _end_server(server: subprocess.Popen[bytes], temp_dir: TempDir) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    temp_dir.remove()


def show_own_logs() -> None:
    """Send this project's own log lines to standard error, and no others."""
    # Python's handler of last resort writes to the current standard error, so lines appear above bars.
    handler = cast(Any, type(logging.lastResort))(logging.INFO)
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
