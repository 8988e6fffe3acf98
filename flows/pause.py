"""Pause in Prefect's UI: the run stops paying and training within seconds, and Resume continues from there."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.runtime import flow_run

from paraclip.tasks.run.run import Run

LOOK_SECONDS = 0.5
OWN_PROCESS = "PREFECT__FLOW_RUN_ID"
"""Variable in which a worker names the flow run that a process is for."""
PAUSED = "paused: nothing is asked or trained, and its place is free; Resume goes on from the last checkpoint"


@contextmanager
def stopped_by_pause(run: Run) -> Iterator[None]:
    """Stop the run's stages, as a cancel does, when somebody pauses the flow run, which then ends as suspended.

    Prefect itself only checks before the next task begins, and all tasks of a run may already be running. Raises Pause
    in place of what the stopped stages raise.
    """
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    request, ended = context.flow_run_suspension_request, threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            if request.is_requested():
                run.stop.reason = Pause(state=request.get_state())
                run.stop.set()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:
        if request.is_requested():
            explain_when_ended(PAUSED)
        request.raise_if_requested()
        raise
    finally:
        ended.set()
        watcher.join()


def explain_when_ended(message: str) -> None:
    """Give the suspended state of this flow run a message when the process that a worker started for it ends.

    It is also the run's last sign of life: after a later heartbeat, the run would be reported as crashed.
    """
    if os.environ.get(OWN_PROCESS) == flow_run.id:
        atexit.register(_explain, UUID(flow_run.id), message)
    else:
        _explain(UUID(flow_run.id), message)


def _explain(run: UUID, message: str) -> None:
    # Whatever goes wrong here, the run is suspended.
    with suppress(Exception), get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
        # Somebody may have resumed it already.
        if state is not None and state.is_paused():
            explained = State(type=state.type, name=state.name, message=message, state_details=state.state_details)
            client.set_flow_run_state(run, explained, force=True)
