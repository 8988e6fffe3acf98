"""Prefect on this machine, in the foreground: a server, and a worker for each pool, which end with this process."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from paraclip.flows.names import CPU_RUNS, HOST, OWN_LOGGERS, POOLS, SERVER_PASSWORD_VARIABLE, UNWATCHED
from paraclip.flows.own_server import client_variables, end, start, wait_for_server
from paraclip.storage.files import write_atomic
from paraclip.storage.locks import lock
from paraclip_core.errors import ConfigError, StageError


def serve(root: Path, port: int, deploy: Callable[[str], None]) -> None:
    """Start a server with its data below `root`, call `deploy` with its URL, start the workers, and wait.

    It sets the environment, so nothing may have imported prefect before. Whatever ends it ends the processes, workers
    first; our automations mark the runs that were cut off within two minutes of the next `serve`.

    Raises:
        StageError: one of the processes has ended by itself.
    """
    # A shell's background job ignores SIGINT, which its children inherit, and a worker ends itself with SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A second server would use the same database.
    with lock(root / "prefect" / "serve.lock", wait_seconds=0), ExitStack() as stack:
        _need_free_port(port)
        url = f"http://{HOST}:{port}"
        os.environ.update(_environment(root, url))
        processes = {}

        def run(name: str, *arguments: str) -> None:
            processes[name] = start(*arguments)
            stack.callback(end, processes[name], 30)

        run("server", "paraclip.flows.server", "start", "--host", HOST, "--port", str(port))
        wait_for_server(processes["server"], url)
        deploy(url)
        for pool, runs in zip(POOLS, (CPU_RUNS, 1), strict=True):
            options = "--pool", pool, "--name", f"{pool}-worker", "--limit", str(runs)
            run(f"worker of {pool}", "prefect", "worker", "start", *options, "--type", "process")
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
        ended = {name: process.returncode for name, process in processes.items() if process.returncode is not None}
        raise StageError(f"ended by itself: {', '.join(f'the {name}, code {code}' for name, code in ended.items())}")


def password_file(root: Path) -> Path:
    """Path of the password that `serve` made, which only its user can read."""
    return root / "prefect" / "password"


def _environment(root: Path, url: str) -> dict[str, str]:
    password = _password(root)
    return {
        **UNWATCHED,
        "PREFECT_HOME": str((root / "prefect" / "server").resolve()),
        **client_variables(url, password),
        # The port is open to every page that a browser shows and to every user of the machine. A page of another origin
        # reads no answer and writes nothing; one whose own name leads to 127.0.0.1 does not know the password.
        SERVER_PASSWORD_VARIABLE: password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        # Without it the UI calls port 4200, whatever the server's port is.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # In memory, which is the default, a restart of the server forgets who holds a concurrency limit, and ends them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
    }


def _need_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error


def _password(root: Path) -> str:
    """The user's own password, or one that is made once, so that a browser that knows it need not ask again."""
    if own := os.environ.get(SERVER_PASSWORD_VARIABLE):
        if ":" not in own or own.split() != [own]:
            raise ConfigError(f"{SERVER_PASSWORD_VARIABLE} must be USER:PASSWORD, without blanks")
        return own
    path = password_file(root)

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.write(f"admin:{secrets.token_hex(16)}\n".encode())

    if not path.exists():
        write_atomic(path, write)
    return path.read_text().strip()
