"""Pools, deployments and the automations that a server needs; run as ``python -m flows.setup prefect.yaml``.

It talks to the server that PREFECT_API_URL names, so it serves a production server as well as `paraclip serve`.
Running it again sets the deployments to what the file says.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.household import CPU_RUNS, POOLS

__all__ = [
    "PARENTS",
    "PARENT_RUNS",
    "SILENT",
    "TAKEN",
    "create_automation",
    "create_automations",
    "create_pools",
    "deploy",
]

PARENTS = "pipelines"
"""Queue in the CPU pool of the flows that may wait for stages in that pool, which must find places there."""
PARENT_RUNS = CPU_RUNS * 3 // 4

ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")


class Watch(NamedTuple):
    """A wait of Prefect's server for a sign of life of a run, which is marked as crashed if none comes."""

    name: str
    after: str
    """The event that starts the wait."""
    signs: tuple[str, ...]
    """The events that end it."""
    seconds: int
    message: str


SILENT = Watch(
    "paraclip: runs without a heartbeat have crashed",
    "heartbeat",
    # Its end, its Retry, and what the retried run does first: a run's last heartbeat may come just after its end, and
    # a busy machine needs longer than this to start it again.
    ("heartbeat", *ENDS, "pull-step.executed"),
    90,  # three heartbeats of 30 seconds
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


def create_automations() -> None:
    """Mark runs as crashed whose process or worker went away, which no service of Prefect does.

    They would be running or pending for ever, and hold their queue's places.
    """
    for watch in (SILENT, TAKEN):
        create_automation(watch)


def create_automation(watch: Watch) -> None:
    """Make one, anew where it is there, so that it waits for nothing of runs from before.

    A server that was restarted holds back for a quarter of an hour that a run ended, if that had begun less than five
    minutes before, and a Retry would be crashed.
    """
    with suppress(ValueError):
        Automation.read(name=watch.name).delete()  # pyright: ignore[reportAttributeAccessIssue] - async code only
    trigger = EventTrigger(
        after={f"prefect.flow-run.{watch.after}"},
        expect={f"prefect.flow-run.{sign}" for sign in watch.signs},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=watch.seconds),
    )
    message = watch.message.format(watch.seconds)
    crashed = ChangeFlowRunState(state=StateType.CRASHED, name=None, message=message, force=False)
    Automation(name=watch.name, trigger=trigger, actions=[crashed]).create()  # pyright: ignore[reportUnusedCoroutine]


def deploy(prefect_file: str) -> int:
    """Register every deployment of `prefect_file`; returns the command's exit code."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", prefect_file]
    return subprocess.run(command).returncode


def _main() -> int:
    create_pools()
    code = deploy(sys.argv[1])
    create_automations()
    return code


if __name__ == "__main__":
    sys.exit(_main())
