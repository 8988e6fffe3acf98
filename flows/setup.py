"""Pools, deployments and the automation that a server needs; run as ``python -m flows.setup prefect.yaml``.

It talks to the server that PREFECT_API_URL names, so it serves a production server as well as `paraclip serve`.
Running it again sets the deployments to what the file says.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

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

__all__ = ["PARENTS", "PARENT_RUNS", "create_automation", "create_pools", "deploy"]

PARENTS = "pipelines"
"""Queue in the CPU pool of the flows that may wait for stages in that pool, which must find places there."""
PARENT_RUNS = CPU_RUNS * 3 // 4

AUTOMATION = "paraclip: runs without a heartbeat have crashed"
SILENT_SECONDS = 90
"""Three heartbeats of 30 seconds."""
SIGNS = ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry", "pull-step.executed")
"""What ends the wait for a heartbeat: the next one, the run's end, its Retry, and what the retried run does first.

A run's last heartbeat may come just after its end, and a busy machine needs longer than 90 seconds to start it again.
"""


def create_pools() -> None:
    """The process work pools and the queue of pipelines, where they are not there yet."""
    # With the template in place, the workers need not write it, which two at once do badly on SQLite.
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        with suppress(ObjectAlreadyExists):
            client.create_work_queue(PARENTS, concurrency_limit=PARENT_RUNS, work_pool_name=POOLS[0])


def create_automation() -> None:
    """Mark a run whose process went away together with its worker as crashed; no service of Prefect does.

    It is made anew, so that it waits for no heartbeat of runs from before: a server that was restarted holds back for a
    quarter of an hour that a run ended, if that had begun less than five minutes before, and a Retry would be crashed.
    """
    with suppress(ValueError):
        Automation.read(name=AUTOMATION).delete()  # pyright: ignore[reportAttributeAccessIssue] - async code only
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={f"prefect.flow-run.{sign}" for sign in SIGNS},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENT_SECONDS),
    )
    message = (
        f"no heartbeat for {SILENT_SECONDS} s: its process is gone or was suspended; once it has ended, Retry goes on"
    )
    crashed = ChangeFlowRunState(state=StateType.CRASHED, name=None, message=message, force=False)
    Automation(name=AUTOMATION, trigger=trigger, actions=[crashed]).create()  # pyright: ignore[reportUnusedCoroutine]


def deploy(prefect_file: str) -> int:
    """Register every deployment of `prefect_file`; returns the command's exit code."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", prefect_file]
    return subprocess.run(command).returncode


def _main() -> int:
    create_pools()
    code = deploy(sys.argv[1])
    create_automation()
    return code


if __name__ == "__main__":
    sys.exit(_main())
