"""Prefect servers for tests that run flows in this process."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from paraclip_core.lifetime import TempDir
from tests.kit.processes import free_port
from tests.kit.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
LIGHT = """
import sys
from paraclip_core.lifetime import die_with
die_with(int(sys.argv[1]))
import uvicorn
from paraclip.flows.server import wait_for_other_writers
wait_for_other_writers()
application = "prefect.server.api.server:create_app"
uvicorn.run(application, factory=True, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", lifespan="on")
"""
"""A server without the services that notice late runs and missing workers; it ends with this process."""


def _start(command: Sequence[str], port: int, **variables: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers, and the address of its API."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    server = subprocess.Popen([sys.executable, "-P", *command], env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/api"

    def answers() -> bool:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=10):
            return True
        return False

    eventually(answers, "the server did not answer", 900)
    return server, url


@contextmanager
def whole_server(home: Path) -> Iterator[str]:
    """A server with all services, as `paraclip serve` starts it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    port = free_port()
    command = ["-m", "paraclip.flows.server", "start", "--port", str(port)]
    server, url = _start(command, port, PREFECT_HOME=str(home))
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
            _drain()
    finally:
        server.terminate()
        server.wait(60)


_started: list[Any] = []
"""This process's server, the address of its API, and the URL of its database."""


@contextmanager
def prefect_server() -> Iterator[str]:
    """This process's server, started once and emptied on entry; yields the API's address."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

    if not _started:
        # Held while its owner lives: others sweep our temporary folders that nobody holds.
        temp_dir = TempDir("tests-")
        atexit.register(temp_dir.remove)
        folder = temp_dir.path
        database, port = f"sqlite+aiosqlite:///{folder / 'prefect.db'}", free_port()
        variables = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, "PREFECT_HOME": str(folder)}
        ephemeral = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_SERVER_UI_ENABLED": "false"}
        _started.extend((*_start(["-c", LIGHT, str(os.getpid()), str(port)], port, **variables, **ephemeral), database))
    _, url, database = _started
    # Also for threads, whose context is that of the process.
    with (
        temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: database, PREFECT_API_URL: url}),
        _temporary_global_settings_context(get_settings_context()),
    ):
        _empty(url)
        yield url
        _drain()


def end_server() -> None:
    """End this process's server, which the end of an xdist worker would kill."""
    if _started:
        _started[0].terminate()
        _started[0].wait(60)
        _started.clear()


def _drain() -> None:
    """Send waiting logs and events and end their workers, which are bound to the first server they see."""
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
    """Create runs in this state, one for each pid."""
    from prefect import flow, get_client
    from prefect.client.schemas.objects import State, StateType

    @flow
    def work() -> None:
        pass

    runs = []
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(work), f"of-{pool}-{queue}", work_pool_name=pool, work_queue_name=queue
        )
        for pid in pids:
            run = client.create_flow_run_from_deployment(deployment, tags=tags)
            client.update_flow_run(run.id, infrastructure_pid=None if pid is None else str(pid))
            client.set_flow_run_state(run.id, State(type=StateType(state)), force=True)
            runs.append(run.id)
    return runs


def states(runs: Sequence[UUID]) -> list[str]:
    """The names of their states."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return [state.name or "" for run in runs if (state := client.read_flow_run(run).state)]
