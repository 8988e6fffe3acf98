"""A stage as a child run of its own deployment: found again by its key, waited for, and cancelled with its parent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, Pause, PrefectHTTPStatusError
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelling, Scheduled

from paraclip.tasks.results import stage_row
from paraclip.tasks.run.run import Node, Run, Stop
from paraclip_core.errors import ArtifactError, StageError

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 2.0
AWAY_SECONDS = 3600.0
"""Seconds the server may be unreachable."""
SERVER_ERROR = 500


def run_child(node: Node, run: Run) -> dict[str, Any]:
    """Run a stage through its own deployment and wait for it; a finished stage starts no run.

    The child run is keyed by its parent's run and the stage's fingerprint: a retried parent finds its earlier children,
    unless a source changed in between. If a child still runs, the parent waits for it. If it ended without an artifact
    (it failed, or the artifact was deleted since), the same run starts again. Nothing is started twice.
    """
    started = time.monotonic()
    store, name = run.store, node.name
    artifact = store.peek(name, node.fingerprint)
    if artifact is not None:
        # A process that only finds this out would take ten seconds to start.
        return stage_row(artifact, True, time.monotonic() - started)
    child = _patiently(lambda: _start(run, node), run.stop)
    try:
        ended = _wait(child, lambda: store.peek(name, node.fingerprint) is None, run.stop)
    except BaseException:
        _cancel_with_parent(child, run.stop.reason)
        raise
    artifact = store.peek(name, node.fingerprint)
    if artifact is None and (state := ended.state) and not state.is_completed():
        # A run gets its own name when it begins; until then it has a random one.
        reason = (state.message or "no reason given").rstrip(".")
        raise StageError(
            f"the child run {ended.name} of {name} ended as {state.name}: {reason}. Retry this run to go on from there"
        )
    if artifact is None:
        raise ArtifactError(
            f"{name} completed, but {name}/{node.fingerprint} is not under {store.location}: a source file or the "
            f"code has changed meanwhile; Retry this run. If the error comes back, its worker has another "
            f"run.root, which must be the same shared folder or object store for every worker"
        )
    return stage_row(artifact, False, time.monotonic() - started)


def _start(run: Run, node: Node) -> FlowRun:
    # The stages are deployed with their pipeline, whatever name an override gives to this run.
    path = f"{node.name}/{deployment.name or run.settings.name}"
    try:
        # Prefect types it as awaitable too, which it is in async code only.
        return cast(
            FlowRun,
            run_deployment(
                path,
                parameters={"settings": run.settings.model_dump(mode="json")},
                timeout=0,
                idempotency_key=f"{flow_run.id}-{node.name}-{node.fingerprint}",
            ),
        )
    except ObjectNotFound as error:
        raise StageError(
            f"the Prefect server has no deployment {path}, which run.placement=deployments needs; register it with "
            "`paraclip deploy -c` and the configuration of this run, or use run.placement=inline"
        ) from error


def _wait(child: FlowRun, needed: Callable[[], bool], stop: Stop) -> FlowRun:
    """The child once it has ended; a child that ended before and is still `needed` runs once more."""
    with get_client(sync_client=True) as client:
        current = _patiently(lambda: client.read_flow_run(child.id), stop)
        if current.state and current.state.is_cancelling():
            # Cancelled with its parent, some seconds later. This parent runs again, so the cancel is no longer wanted.
            current = _ended(client, child, stop)
        if current.state and current.state.is_final() and needed():
            log.warning(
                "the child run %s is %s, but its artifact is missing: it runs again", current.name, current.state.name
            )
            again = Scheduled(name="AwaitingRetry")
            _patiently(lambda: client.set_flow_run_state(child.id, again, force=True), stop)
        return _ended(client, child, stop)


def _ended(client: SyncPrefectClient, child: FlowRun, stop: Stop) -> FlowRun:
    while True:
        current = _patiently(lambda: client.read_flow_run(child.id), stop)
        if current.state and current.state.is_final():
            return current
        stop.wait(POLL_SECONDS)
        stop.check()


def _patiently(call: Callable[[], T], stop: Stop) -> T:
    """The result of `call` once the server answers; a child works on while it is away, so its parent must wait."""
    end, warned = time.monotonic() + AWAY_SECONDS, False
    while True:
        try:
            return call()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            away = not isinstance(error, PrefectHTTPStatusError) or error.response.status_code >= SERVER_ERROR
            if not away or time.monotonic() > end:
                raise
            if not warned:
                log.warning("the Prefect server does not answer, trying again: %s", error)
            warned = True
        stop.wait(POLL_SECONDS)
        stop.check()


def _cancel_with_parent(child: FlowRun, reason: BaseException | None) -> None:
    """Cancel the child if this run is cancelled or paused, was interrupted by Ctrl-C, or fails for another stage.

    The server does the first itself, half a minute later, and does not know about the others. A parent that ends in
    any other way, for example with its worker, leaves its child running.
    """
    wanted = isinstance(reason, KeyboardInterrupt | Pause | Exception)
    # Whatever goes wrong here must not hide why this run ends.
    with suppress(Exception), get_client(sync_client=True) as client:
        parent = client.read_flow_run(UUID(flow_run.id))
        if wanted or (parent.state and parent.state.is_cancelling()):
            client.set_flow_run_state(child.id, Cancelling(message="The parent flow run was cancelled or interrupted."))
