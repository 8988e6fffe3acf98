"""Prefect servers for tests that run flows in this process."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from waiting import eventually  # pyright: ignore[reportMissingImports]


@contextmanager
def whole_server(home: Path) -> Iterator[str]:
    """A server with the services that Prefect's harness lacks, which see that runs are late and workers gone."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "PREFECT_HOME": str(home)}, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=10):
            return True
        return False

    try:
        eventually(answers, "the server did not answer", 600)
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
            _send_what_waits()
    finally:
        server.terminate()
        server.wait(60)


_started: list[Any] = []
"""Prefect's handle of this process's server, and the URL of its database."""


@contextmanager
def prefect_server() -> Iterator[str]:
    """This process's server, started once and emptied for whoever enters; gives the API's address."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

    if not _started:
        folder = Path(tempfile.mkdtemp(prefix="paraclip-prefect-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        database = f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: database}):
            server = SubprocessASGIServer(port=port)
            server.start(timeout=900)
        _started.extend((server, database))
    server, database = _started
    # Also for threads, whose context is that of the process.
    with (
        temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: database, PREFECT_API_URL: server.api_url}),
        _temporary_global_settings_context(get_settings_context()),
    ):
        _empty(server.api_url)
        yield server.api_url
        _send_what_waits()


def _send_what_waits() -> None:
    """Send waiting logs and events and end their workers, which are bound to the first server that they see."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with suppress(RuntimeError):
        APILogWorker.drain_all(timeout=60, at_exit=False)
    EventsWorker.drain_all(timeout=60)


def _empty(url: str) -> None:
    """Delete automations, flows with their deployments and runs, and pools. Artifacts stay: there may be hundreds."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for kind, key in (("automations", "id"), ("flows", "id"), ("work_pools", "name")):
            for one in client.post(f"/{kind}/filter", json={}).raise_for_status().json():
                client.delete(f"/{kind}/{one[key]}").raise_for_status()


def runs_of(
    pool: str | None,
    pids: Sequence[int | None],
    state: str = "RUNNING",
    queue: str | None = None,
    tags: Sequence[str] = (),
) -> list[UUID]:
    """Runs in this state, one for each pid."""
    from prefect import flow, get_client
    from prefect.client.schemas.objects import State, StateType

    @flow
    def work() -> None:
        pass

    made = []
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(work), f"of-{pool}-{queue}", work_pool_name=pool, work_queue_name=queue
        )
        for pid in pids:
            run = client.create_flow_run_from_deployment(deployment, tags=tags)
            client.update_flow_run(run.id, infrastructure_pid=None if pid is None else str(pid))
            client.set_flow_run_state(run.id, State(type=StateType(state)), force=True)
            made.append(run.id)
    return made


def states(runs: Sequence[UUID]) -> list[str]:
    """The names of their states."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return [state.name or "" for run in runs if (state := client.read_flow_run(run).state)]
