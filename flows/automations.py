"""Automations that end a run whose process or worker is gone; no Prefect service does that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from paraclip.flows.names import HEARTBEAT, TAG

SETTLE_SECONDS = 5.0
"""Seconds a server may take to act on a changed automation."""
PAGE = 200
"""Most items that Prefect's API returns at once."""

ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")


class Watch(NamedTuple):
    """A wait of the Prefect server for an event of a run; if none comes, it changes the run's state."""

    name: str
    after: str
    """The event that starts the wait."""
    signs: tuple[str, ...]
    """The events that end it."""
    seconds: int
    message: str
    state: StateType = StateType.CRASHED


SILENT = Watch(
    "paraclip: runs without a heartbeat have crashed",
    "heartbeat",
    # Its end, its wait for a person, its Retry, and what the retried run does first: a run's last heartbeat may come
    # just after its end, and a busy machine needs longer than this to start it again.
    ("heartbeat", *ENDS, "Suspended", "pull-step.executed"),
    3 * int(HEARTBEAT),
    "no heartbeat for {} s: its process is gone or was suspended; once it has ended, Retry goes on",
)
TAKEN = Watch(
    "paraclip: runs that a worker took and did not start have crashed",
    "Pending",
    ("Running", *ENDS, "Cancelling", "Scheduled", "AwaitingConcurrencySlot"),
    # A restarted server may report a quarter of an hour late that a run has begun.
    1200,
    "taken by a worker {} s ago and not started: the worker is gone; Retry goes on",
)
STOPPING = Watch(
    "paraclip: runs that nothing cancels are cancelled",
    "Cancelling",
    # Without the heartbeat: a worker kills what has not ended after 30 seconds, and nobody would notice a later death.
    ENDS,
    90,
    "still cancelling after {} s: its process or worker is gone; Retry goes on",
    StateType.CANCELLED,
)


def create_automations(*watches: Watch) -> None:
    """Create the automations, for runs that would otherwise keep their places in the queue for ever.

    One of the same name is updated: it keeps its id, and stays off if it was off. An update drops pending waits because
    its trigger is a new one; :func:`watch_unfinished` starts them again.
    """
    for watch in watches or (SILENT, TAKEN, STOPPING):
        trigger = EventTrigger(
            after={f"prefect.flow-run.{watch.after}"},
            expect={f"prefect.flow-run.{sign}" for sign in watch.signs},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            # Heartbeats and changes of state carry the run's tags.
            match_related=ResourceSpecification({"prefect.resource.id": f"prefect.tag.{TAG}"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=watch.seconds),
        )
        message = watch.message.format(watch.seconds)
        action = ChangeFlowRunState(state=watch.state, name=None, message=message, force=False)
        automation: Any = Automation(name=watch.name, trigger=trigger, actions=[action])
        try:
            existing: Any = Automation.read(name=watch.name)
        except ValueError:
            automation.create()
            continue
        automation.id, automation.enabled = existing.id, existing.enabled
        automation.update()


def watch_unfinished() -> None:
    """Start the waits for every unfinished run of this project; those end a run that has no process behind it."""
    types = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": types}}, "tags": {"all_": [TAG]}})
    runs: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while page := client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(runs)):
            runs += page
    if runs:
        time.sleep(SETTLE_SECONDS)
        asyncio.run(_start_waits(runs))


async def _start_waits(runs: Sequence[FlowRun]) -> None:
    related = [RelatedResource({"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"})]
    async with get_events_client() as client:
        for run in runs:
            watch = STOPPING if run.state and run.state.is_cancelling() else SILENT
            about = {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name}
            event = Event(event=f"prefect.flow-run.{watch.after}", resource=Resource(about), related=related)
            await client.emit(event)
