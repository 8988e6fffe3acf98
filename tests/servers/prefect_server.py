"""A Prefect server of their own for a module's tests, which run flows in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

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
    finally:
        server.terminate()
        server.wait(60)


@contextmanager
def prefect_server() -> Iterator[str]:
    """Prefect's own harness; gives the API's address."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=900):
        yield PREFECT_API_URL.value()


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
