"""What the setup of a Prefect server makes and keeps, and which runs its automations end, on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect_server import runs_of, states  # pyright: ignore[reportMissingImports]
from waiting import eventually  # pyright: ignore[reportMissingImports]

from paraclip.flows.local_stack import CPU_RUNS, HEARTBEAT, NOT_TAKEN, POOLS, TAG

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(prefect: str) -> str:
    """The API's address; the server has the stack's pools."""
    from paraclip.flows.setup import create_pools

    create_pools()
    return prefect


@pytest.mark.usefixtures("server")
def test_pipelines_that_wait_for_their_stages_leave_places_on_the_worker() -> None:
    from prefect import get_client
    from prefect.states import Completed, Running

    from paraclip.flows.setup import PARENT_RUNS, PARENTS, create_pools

    assert 0 < PARENT_RUNS < CPU_RUNS
    with get_client(sync_client=True) as client:
        # As `prefect deploy` makes it.
        client.update_work_queue(client.read_work_queue_by_name(PARENTS, POOLS[0]).id, concurrency_limit=None)
        create_pools()
        asked = runs_of(POOLS[0], [None] * (PARENT_RUNS + 2), "SCHEDULED", PARENTS)
        stage = runs_of(POOLS[0], [None], "SCHEDULED")

        def offered() -> set[UUID]:
            runs = client.get_scheduled_flow_runs_for_work_pool(POOLS[0])
            return {response.flow_run.id for response in runs} & {*asked, *stage}

        begun = offered() & {*asked}
        assert len(begun) == PARENT_RUNS
        for run in begun:
            client.set_flow_run_state(run, Running(), force=True)
        assert offered() == {*stage}
        for run in begun:
            client.set_flow_run_state(run, Completed(), force=True)
        assert offered() == {*asked, *stage} - begun


def read_deployment(name: str) -> Any:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


@pytest.fixture(scope="module")
def deployed(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A file with two deployments, of which the server knows, and the root that their runs are to work in."""
    from paraclip.flows.setup import deploy

    folder = tmp_path_factory.mktemp("deployed")
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    chosen = {one["name"]: one for one in declared["deployments"] if one["name"] in ("regenerate", "scenes")}
    chosen["regenerate"] |= {"tags": ["own"]}
    data = {"scenes": {"images": 20}, "sources": [{"path": "captions.jsonl", "images": "images.tar"}]}
    chosen["scenes"] |= {"parameters": {"settings": {"name": "bare", "data": data}}}
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(declared | {"deployments": [*chosen.values()]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", server)
        for name in ("home", "root"):
            (folder / name).mkdir()
            patch.setenv(f"PARACLIP_{name.upper()}", str(folder / name))
        assert deploy(path) == 0
        yield path, folder / "root"


def test_a_schedule_that_was_paused_stays_paused(deployed: tuple[Path, Path]) -> None:
    from prefect import get_client

    from paraclip.flows.setup import deploy

    deployment = read_deployment("regenerate/regenerate")
    assert deployment.schedules[0].active and not deployment.paused and deployment.tags == ["own", TAG]
    with get_client(sync_client=True) as client:
        client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)
        client.pause_deployment(deployment.id)
    assert deploy(deployed[0]) == 0
    again = read_deployment("regenerate/regenerate")
    assert again.id == deployment.id and again.paused and [schedule.active for schedule in again.schedules] == [False]


def test_a_bare_worker_works_in_the_root_that_the_setup_names(
    deployed: tuple[Path, Path], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import get_client
    from prefect.settings import Settings

    deployment = read_deployment("scenes/scenes")
    environment = deployment.job_variables["env"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == HEARTBEAT and environment["PYTHONSAFEPATH"] == "1"
    assert "paraclip_core" in environment["PREFECT_LOGGING_EXTRA_LOGGERS"]
    with monkeypatch.context() as patch:
        name = "PREFECT_CLIENT_RETRY_EXTRA_CODES"
        patch.setenv(name, environment[name])
        assert Settings().client.retry_extra_codes == {500}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment.id)
    assert run.tags == [TAG]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PARACLIP_", "PREFECT_"))}
    bare |= {"PREFECT_API_URL": server, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOLS[0], "--run-once"]
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert states([run.id]) == ["Completed"], done.stdout + done.stderr
    assert list((deployed[1] / "artifacts" / "scenes").iterdir())


def test_a_server_that_does_not_take_the_setup_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from paraclip.flows.setup import _main

    url = "http://127.0.0.1:1/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PARACLIP_HOME", str(REPOSITORY))
    with temporary_settings({PREFECT_API_URL: url}):
        assert _main(REPOSITORY / "prefect.yaml") == NOT_TAKEN
    assert "PREFECT_API_AUTH_STRING" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_automations_are_updated_in_place_and_say_what_to_do() -> None:
    from prefect.automations import Automation
    from prefect.events.actions import ChangeFlowRunState

    from paraclip.flows.setup import SILENT, STOPPING, TAKEN, create_automations

    def read(name: str) -> Any:
        return Automation.read(name=name)

    create_automations()
    before = {watch.name: read(watch.name).id for watch in (SILENT, TAKEN, STOPPING)}
    off = read(TAKEN.name)
    off.enabled = False
    off.update()
    create_automations()
    assert {name: read(name).id for name in before} == before and not read(TAKEN.name).enabled
    off.enabled = True
    off.update()
    for watch, message in (
        (SILENT, "no heartbeat for 90 s"),
        (TAKEN, "taken by a worker 1200 s ago and not started"),
        (STOPPING, "still cancelling after 90 s"),
    ):
        (action,) = read(watch.name).actions
        assert isinstance(action, ChangeFlowRunState) and action.message
        assert message in action.message and "Retry goes on" in action.message


def heartbeat(run: UUID) -> None:
    from prefect.events import Event, Resource, get_events_client
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def send() -> None:
        resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run}"})
        async with get_events_client() as client:
            await client.emit(Event(event="prefect.flow-run.heartbeat", resource=resource))

    run_coro_as_sync(send())


@pytest.mark.usefixtures("server")
def test_our_runs_with_nothing_behind_them_end_and_no_others() -> None:
    from prefect import get_client
    from prefect.states import Failed, Pending, Running, Scheduled

    from paraclip.flows.setup import SILENT, STOPPING, TAKEN, create_automations, watch_unfinished

    def ours(count: int, state: str = "RUNNING") -> list[UUID]:
        return runs_of(POOLS[0], list(range(401, 401 + count)), state, tags=[TAG])

    (foreign,) = runs_of(POOLS[0], [400])
    silent, retried, taken, begun = ours(4)
    (left,), (stopping,) = ours(1, "PENDING"), ours(1, "CANCELLING")
    create_automations(*(watch._replace(seconds=10) for watch in (SILENT, TAKEN, STOPPING)))
    watch_unfinished()
    heartbeat(foreign)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(retried, Failed(), force=True)
        client.set_flow_run_state(retried, Scheduled(name="AwaitingRetry"), force=True)
        for run in (taken, begun):
            client.set_flow_run_state(run, Failed(), force=True)
            client.set_flow_run_state(run, Pending(), force=True)
        client.set_flow_run_state(begun, Running(), force=True)
    eventually(
        lambda: states([silent, left, taken, stopping]) == ["Crashed", "Crashed", "Crashed", "Cancelled"],
        "a run with nothing behind it does not end",
    )
    # The server looks every five seconds.
    time.sleep(6)
    assert states([foreign, retried, begun]) == ["Running", "AwaitingRetry", "Running"]
