"""Pools, deployments and the automations that a server needs; run as ``python -m paraclip.flows.setup [prefect.yaml]``.

It talks to the server that PREFECT_API_URL names, so it serves a production server as well as `paraclip serve`.
Running it again creates what is missing and updates the rest in place.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from paraclip.flows.local_stack import (
    ADDRESS_VARIABLE,
    CPU_RUNS,
    HEARTBEAT,
    NOT_TAKEN,
    OURS,
    OWN_LOGGERS,
    POOLS,
    RUNS,
    TAG,
    check_server,
)
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir

PARENTS = "pipelines"
"""Queue in the CPU pool of the flows that may wait for stages in that pool, which must find places there."""
PARENT_RUNS = CPU_RUNS * 3 // 4

PLACES = ("PARACLIP_ROOT", "PARACLIP_HOME", ADDRESS_VARIABLE)
"""Variables of this process that every flow run gets, whatever its worker has."""
SETTLE_SECONDS = 5.0
"""How long a server may take to act on a changed automation."""
PAGE = 200
"""The most that Prefect's API gives at once."""

ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")


class Watch(NamedTuple):
    """A wait of Prefect's server for an event of a run, whose state it changes if none comes."""

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
    # A server that was restarted may hold back for a quarter of an hour that a run has begun.
    1200,
    "taken by a worker {} s ago and not started: the worker is gone; Retry goes on",
)
STOPPING = Watch(
    "paraclip: runs that nothing cancels are cancelled",
    "Cancelling",
    # No heartbeat: a worker kills what has not ended after 30 seconds, and nobody would see a later death.
    ENDS,
    90,
    "still cancelling after {} s: its process or worker is gone; Retry goes on",
    StateType.CANCELLED,
)


def create_pools() -> None:
    """The process work pools and the queue of pipelines, where they are not there yet."""
    # With the template in place, the workers need not write it, which two at once do badly on SQLite.
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        try:
            client.create_work_queue(PARENTS, concurrency_limit=PARENT_RUNS, work_pool_name=POOLS[0])
        except ObjectAlreadyExists:
            queue = client.read_work_queue_by_name(PARENTS, POOLS[0])
            # `prefect deploy` makes a queue without one.
            if queue.concurrency_limit is None:
                client.update_work_queue(queue.id, concurrency_limit=PARENT_RUNS)


def create_automations(*watches: Watch) -> None:
    """End runs whose process or worker went away, which no service of Prefect does.

    They would be running, pending or cancelling for ever, and hold their queue's places. An update drops pending waits,
    because the trigger is a new one: :func:`watch_unfinished` starts them again.
    """
    for watch in watches or (SILENT, TAKEN, STOPPING):
        trigger = trigger_of(
            (f"prefect.flow-run.{sign}" for sign in watch.signs),
            watch.seconds,
            RUNS,
            after=(f"prefect.flow-run.{watch.after}",),
            # Heartbeats and changes of state carry the run's tags.
            related=(OURS,),
        )
        message = watch.message.format(watch.seconds)
        action = ChangeFlowRunState(state=watch.state, name=None, message=message, force=False)
        put_automation(Automation(name=watch.name, trigger=trigger, actions=[action]))


def trigger_of(
    expect: Iterable[str],
    seconds: int,
    match: Mapping[str, Any],
    after: Sequence[str] = (),
    related: Sequence[Mapping[str, Any]] = (),
    for_each: Iterable[str] = ("prefect.resource.id",),
) -> EventTrigger:
    """The trigger that fires on an event, the next of its kind `seconds` later at the earliest; or with `after` where
    none comes so many seconds after those."""
    return EventTrigger(
        after=set(after),
        expect=set(expect),
        match=ResourceSpecification(dict(match)),
        match_related=[ResourceSpecification(dict(one)) for one in related],
        for_each=set(for_each),
        posture=Posture.Proactive if after else Posture.Reactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )


def put_automation(automation: Any) -> None:
    """Create an automation, or update the one of its name, which keeps its id and stays off where it was turned off."""
    try:
        existing: Any = Automation.read(name=automation.name)
    except ValueError:
        automation.create()
        return
    automation.id, automation.enabled = existing.id, existing.enabled
    automation.update()


def watch_unfinished() -> None:
    """Start the waits for every unfinished run of this project, which has ended by then if nothing is behind it."""
    if runs := _unfinished():
        time.sleep(SETTLE_SECONDS)
        asyncio.run(_start_waits(runs))


def _unfinished() -> list[FlowRun]:
    types = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": types}}, "tags": {"all_": [TAG]}})
    runs: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while page := client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(runs)):
            runs += page
    return runs


async def _start_waits(runs: Sequence[FlowRun]) -> None:
    related = [RelatedResource({"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"})]
    async with get_events_client() as client:
        for run in runs:
            watch = STOPPING if run.state and run.state.is_cancelling() else SILENT
            resource = Resource(
                {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name}
            )
            await client.emit(Event(event=f"prefect.flow-run.{watch.after}", resource=resource, related=related))


def deploy(prefect_file: Path) -> int:
    """Register every deployment of `prefect_file`; returns an exit code.

    Each gets this project's tag and, for its runs, the variables of :func:`_run_environment`. What an operator paused
    or resumed stays so.
    """
    declared: dict[str, Any] = yaml.safe_load(prefect_file.read_text())
    with get_client(sync_client=True) as client:
        names = DeploymentFilter.model_validate({"name": {"any_": [one["name"] for one in declared["deployments"]]}})
        existing = {(one.work_pool_name, one.name): one for one in client.read_deployments(deployment_filter=names)}
    deployments = [
        _completed(one, existing.get((one["work_pool"]["name"], one["name"]))) for one in declared["deployments"]
    ]
    with TempDir() as folder:
        path = folder / "prefect.yaml"
        path.write_text(yaml.safe_dump({**declared, "deployments": deployments}))
        command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        return 1 if subprocess.run(command).returncode else 0


def _completed(declared: Mapping[str, Any], existing: DeploymentResponse | None) -> dict[str, Any]:
    pool = declared["work_pool"]
    variables = pool.get("job_variables", {})
    variables = {**variables, "env": {**_run_environment(), **variables.get("env", {})}}
    deployment = {**declared, "work_pool": {**pool, "job_variables": variables}}
    deployment["tags"] = sorted({TAG, *declared.get("tags", ())})
    if existing is not None:
        deployment["paused"] = existing.paused
        if existing.schedules:
            active = any(schedule.active for schedule in existing.schedules)
            deployment["schedules"] = [{**one, "active": active} for one in declared.get("schedules", ())]
    return deployment


def _run_environment() -> dict[str, str]:
    """What a run needs to know, so that a worker that was started without it is right, too."""
    places = {name: os.environ[name] for name in PLACES if os.environ.get(name)}
    return {
        **places,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        # What a server says whose Postgres is away; by default a run that meets it crashes.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    }


def _main(prefect_file: Path) -> int:
    os.environ.setdefault("PARACLIP_HOME", str(Path.cwd()))
    try:
        check_server()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return NOT_TAKEN
    create_pools()
    code = deploy(prefect_file)
    create_automations()
    watch_unfinished()
    return code


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("prefect.yaml")))
