"""Which runs the automations end, and what a renewed server keeps, on a real server."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.events.actions import ChangeFlowRunState
from prefect.states import Failed, Pending, Running, Scheduled
from prefect.utilities.asyncutils import run_coro_as_sync

from paraclip.flows.automations import SILENT, STOPPING, TAKEN, create_automations, watch_unfinished
from paraclip.flows.names import POOLS, TAG
from tests.kit.prefect_server import runs_of, states
from tests.kit.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(prefect: str) -> str:
    """The API's address; the server has the CPU pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOLS[0], type="process"))
    return prefect


@pytest.mark.usefixtures("server")
def test_automations_are_updated_in_place_and_say_what_to_do() -> None:
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


def heartbeat(run: UUID, *tags: str) -> None:
    async def send() -> None:
        resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run}"})
        tagged = ({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags)
        event = Event(event="prefect.flow-run.heartbeat", resource=resource, related=[*map(RelatedResource, tagged)])
        async with get_events_client() as client:
            await client.emit(event)

    run_coro_as_sync(send())


@pytest.mark.usefixtures("server")
def test_our_runs_with_nothing_behind_them_end_and_no_others() -> None:
    def ours(count: int, state: str = "RUNNING") -> list[UUID]:
        return runs_of(POOLS[0], list(range(401, 401 + count)), state, tags=[TAG])

    (foreign,) = runs_of(POOLS[0], [400])
    silent, retried, taken, begun, last = ours(5)
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
    # Once this last wait has ended, so have those of the others.
    heartbeat(last, TAG)
    eventually(
        lambda: states([silent, left, taken, last, stopping]) == ["Crashed"] * 4 + ["Cancelled"],
        "a run with nothing behind it does not end",
    )
    assert states([foreign, retried, begun]) == ["Running", "AwaitingRetry", "Running"]
