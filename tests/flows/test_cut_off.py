"""Which flow runs are marked as crashed after a household's end, on a real Prefect server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import pytest

from flows import cut_off
from flows.cut_off import WORKER_LABEL, close_remembered, close_runs, remember, worker_name
from flows.household import CPU_RUNS, POOLS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The API's address; the server has the household's pools."""
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    from flows.setup import create_pools

    with prefect_server() as url:
        create_pools()
        yield url


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_off, "PAGE", 3)


def runs_of(pool: str | None, pids: list[int | None], state: str = "RUNNING", queue: str | None = None) -> list[UUID]:
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
            run = client.create_flow_run_from_deployment(deployment)
            client.update_flow_run(run.id, infrastructure_pid=None if pid is None else str(pid))
            client.set_flow_run_state(run.id, State(type=StateType(state)), force=True)
            made.append(run.id)
    return made


def states(runs: list[UUID]) -> list[str]:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return [state.name or "" for run in runs if (state := client.read_flow_run(run).state)]


def test_only_runs_whose_process_was_ended_are_closed_and_all_of_them(server: str) -> None:
    ours = runs_of(POOLS[0], list(range(100, 107))) + runs_of(POOLS[1], [107], "PENDING")
    others = runs_of(POOLS[0], [7, None]) + runs_of(None, [101]) + runs_of(POOLS[0], [102], "COMPLETED")
    assert len(close_runs(server, range(100, 108), POOLS)) == len(ours) == 8
    assert set(states(ours)) == {"Crashed"}
    assert states(others) == ["Running", "Running", "Running", "Completed"]


def test_what_a_worker_took_is_closed_though_it_had_no_process_or_the_machine_was_lost(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import get_client

    started, retried = runs_of(POOLS[0], [301]), runs_of(POOLS[0], [302], "PENDING")
    taken, elsewhere = runs_of(POOLS[1], [None], "PENDING"), runs_of(POOLS[0], [303], "PENDING")
    with get_client(sync_client=True) as client:
        for run in started + retried:
            client.update_flow_run_labels(run, {WORKER_LABEL: worker_name(POOLS[0])})
        client.update_flow_run_labels(elsewhere[0], {WORKER_LABEL: "another machine's"})
    close_remembered(tmp_path, server, POOLS)
    assert states(started + retried + taken) == ["Crashed"] * 3 and states(elsewhere) == ["Pending"]
    assert "now marked as crashed" in caplog.text


def test_a_server_with_a_password_is_told_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pass")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert close_runs(f"http://127.0.0.1:{server.server_port}/api", [1], POOLS) == []
        thread.join(120)
    assert seen == ["Basic YWRtaW46cGFzcw=="]


def test_what_could_not_be_closed_is_closed_later(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Any = runs_of(POOLS[0], [201, 202])
    remember(tmp_path, [201])
    remember(tmp_path, [202])
    close_remembered(tmp_path, "http://127.0.0.1:1/api", POOLS)
    assert states(runs) == ["Running", "Running"] and "stay marked as running" in caplog.text
    close_remembered(tmp_path, server, POOLS)
    assert states(runs) == ["Crashed", "Crashed"]
    caplog.clear()
    close_remembered(tmp_path, server, POOLS)
    assert caplog.text == ""


@pytest.mark.usefixtures("server")
def test_pipelines_that_wait_for_their_stages_leave_places_on_the_worker() -> None:
    from prefect import get_client
    from prefect.states import Completed, Running

    from flows.setup import PARENT_RUNS, PARENTS, create_pools

    assert 0 < PARENT_RUNS < CPU_RUNS
    with get_client(sync_client=True) as client:
        # As `prefect deploy` makes it.
        client.update_work_queue(client.read_work_queue_by_name(PARENTS, POOLS[0]).id, concurrency_limit=None)
        create_pools()
        asked = runs_of(POOLS[0], [None] * (PARENT_RUNS + 2), "SCHEDULED", PARENTS)
        stage = runs_of(POOLS[0], [None], "SCHEDULED")

        def offered() -> set[UUID]:
            found = client.get_scheduled_flow_runs_for_work_pool(POOLS[0])
            return {response.flow_run.id for response in found} & {*asked, *stage}

        begun = offered() & {*asked}
        assert len(begun) == PARENT_RUNS
        for run in begun:
            client.set_flow_run_state(run, Running(), force=True)
        assert offered() == {*stage}
        for run in begun:
            client.set_flow_run_state(run, Completed(), force=True)
        assert offered() == {*asked, *stage} - begun


@pytest.mark.usefixtures("server")
def test_a_run_that_is_closed_from_afar_says_what_to_do() -> None:
    from prefect.automations import Automation
    from prefect.events.actions import ChangeFlowRunState

    from flows.setup import SILENT, TAKEN, create_automations

    create_automations()
    for watch, told in ((SILENT, "no heartbeat for 90 s"), (TAKEN, "taken by a worker 1200 s ago and not started")):
        found: Any = Automation.read(name=watch.name)
        (action,) = found.actions
        assert isinstance(action, ChangeFlowRunState) and action.message
        assert told in action.message and "Retry goes on" in action.message


def heartbeat(run: UUID) -> None:
    from prefect.events import Event, Resource, get_events_client
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def send() -> None:
        resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run}"})
        async with get_events_client() as client:
            await client.emit(Event(event="prefect.flow-run.heartbeat", resource=resource))

    run_coro_as_sync(send())


@pytest.mark.usefixtures("server")
def test_runs_without_a_sign_of_life_crash_and_no_retried_one() -> None:
    from prefect import get_client
    from prefect.states import Failed, Pending, Running, Scheduled
    from waiting import eventually  # pyright: ignore[reportMissingImports]

    from flows.setup import SILENT, TAKEN, create_automation

    silent_soon, taken_soon = SILENT._replace(seconds=20), TAKEN._replace(seconds=20)
    create_automation(silent_soon)
    before, retried, silent, taken, begun = runs_of(POOLS[0], [301, 302, 303, 304, 305])
    heartbeat(before)
    # What a household does that starts again.
    create_automation(silent_soon)
    create_automation(taken_soon)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(retried, Failed(), force=True)
        # Its thread sends it until it hears of the end.
        heartbeat(retried)
        client.set_flow_run_state(retried, Scheduled(name="AwaitingRetry"), force=True)
        for _ in range(8):
            # What comes before the server knows the automations starts no wait.
            heartbeat(silent)
            for run in (taken, begun):
                client.set_flow_run_state(run, Pending(), force=True)
            client.set_flow_run_state(begun, Running(), force=True)
            with suppress(AssertionError):
                eventually(lambda: states([silent, taken]) == ["Crashed", "Crashed"], seconds=40)
                break
    assert states([silent, taken]) == ["Crashed", "Crashed"], "a run without a sign of life is not seen"
    time.sleep(10)
    assert states([before, retried, begun]) == ["Running", "AwaitingRetry", "Running"]
