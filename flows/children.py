"""A stage in its own deployment, as a child run that survives retries of its parent."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Scheduled

from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, StageError
from storage.artifacts import ArtifactStore
from tasks.dag import resolve
from tasks.results import stage_row

__all__ = ["run_child"]

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0


def run_child(name: str, settings: Settings) -> dict[str, Any]:
    """Run a stage through its own deployment and wait for it; a finished stage starts no run at all.

    The child run is keyed by its parent's run and the stage's fingerprint: a retried parent finds the children that it
    had, unless a source changed in between. A completed one is taken as it is, a failed one runs again as itself, and
    nothing is started twice.

    Raises:
        StageError: there is no such deployment, or the child run did not complete.
        ArtifactError: it completed, but this process does not see its artifact.
    """
    started = time.monotonic()
    store = ArtifactStore(settings.run.root)
    node = resolve(settings, store)[name]
    found = store.find(name, node.fingerprint)
    if found is not None:
        # A process that only finds this out would take ten seconds to start.
        return stage_row(found, True, time.monotonic() - started)
    child = _start(name, settings, node.fingerprint)
    state = _wait(child)
    if not state.is_completed():
        raise StageError(
            f"the child run {child.name} of {name} ended as {state.name}: {state.message or 'no reason given'}. "
            f"Retry this run to go on from there"
        )
    artifact = store.find(name, node.fingerprint)
    if artifact is None:
        raise ArtifactError(
            f"{name} completed elsewhere, but {store.path(name, node.fingerprint)} is not here: "
            f"run.root must be the same shared folder for every worker"
        )
    return stage_row(artifact, False, time.monotonic() - started)


def _start(name: str, settings: Settings, fingerprint: str) -> FlowRun:
    try:
        # Prefect types it as awaitable too, which it is in async code only.
        return cast(
            FlowRun,
            run_deployment(
                f"{name}/{name}",
                parameters={"settings": settings.model_dump(mode="json")},
                timeout=0,
                idempotency_key=f"{flow_run.id}-{name}-{fingerprint}",
            ),
        )
    except ObjectNotFound as error:
        raise StageError(
            f"the Prefect server has no deployment {name}/{name}, which run.placement=deployments needs; "
            "start one with `paraclip serve`, or use run.placement=inline"
        ) from error


def _wait(child: FlowRun) -> Any:
    with get_client(sync_client=True) as client:
        current = client.read_flow_run(child.id)
        if current.state and current.state.is_final() and not current.state.is_completed():
            client.set_flow_run_state(child.id, Scheduled(name="AwaitingRetry"), force=True)
            current = client.read_flow_run(child.id)
        while not (current.state and current.state.is_final()):
            time.sleep(POLL_SECONDS)
            current = client.read_flow_run(child.id)
        return current.state
