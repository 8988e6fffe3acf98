"""The whole DAG of one run, as one flow; its stages are tasks here, or child runs that survive retries of this one."""

from __future__ import annotations

import copy
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, Pause, PrefectHTTPStatusError
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelling, Completed, Scheduled

from paraclip.flows.pause import stopped_by_pause
from paraclip.flows.stages import (
    DEFAULTS,
    FormSettings,
    Overrides,
    carry_stage,
    end_earlier_tasks,
    let_own_logs_through,
    publish_result,
    retries,
    run_name,
    run_of,
    stage_task,
)
from paraclip.tasks.channels import check_run_name, record_result
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.publish import StageTable
from paraclip.tasks.results import Result, stage_row
from paraclip.tasks.run.dag import STAGES
from paraclip.tasks.run.run import Node, Run, Stage, Stop
from paraclip.tasks.stages.ingest import need_rows
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.errors import ArtifactError, StageError

log = logging.getLogger(__name__)
T = TypeVar("T")

CPU = "cpu"
"""The slot of all CPU cores."""
POLL_SECONDS = 2.0
AWAY_SECONDS = 3600.0
"""How long the server may be away."""
SERVER_ERROR = 500
GPU = re.compile(r"\d+|(GPU|MIG)-.+")


@flow(name="pipeline", flow_run_name=run_name)
def pipeline(config: str = "", overrides: Overrides = (), settings: FormSettings = DEFAULTS) -> State[Any]:
    """Run every stage and return what came out; stages that do not need each other run side by side.

    A retry runs this function again from the top. Finished stages are found by their fingerprints in milliseconds,
    so it goes on with those that failed or were ended.

    Args:
        config: YAML file in place of `settings`: a path on the worker, or a URL.
        overrides: any options, put over either: `finetune.epochs=3`; `paraclip config schema` lists them.
        settings: what is set most often.
    """
    result = run_stages(run_of(config, overrides, settings))
    return Completed(message=result.decision, data=result.as_json())


def run_stages(run: Run) -> Result:
    """Run every stage, here or in its own deployment; for use inside a flow.

    The first stage that fails ends the others at their next checkpoint, and the run with its error.
    """
    let_own_logs_through()
    end_earlier_tasks()
    table = StageTable(run.settings.name)
    try:
        check_run_name(run.settings.name, run.store)
        need_rows(run)
        # Now: captions that come while it runs are the next run's, and must not leave this one between two sets.
        nodes = run.nodes
        run.check_trackers()
        with run.store.mark_run({name: node.fingerprint for name, node in nodes.items()}), stopped_by_pause(run):
            rows = _Dag(run, table).carry()
            result = record_result(run, rows)
    except Exception as error:
        table.fail(error)
        raise
    table.show(rows, f"Stages of {run.settings.name}")
    publish_result(run.settings, result)
    return result


def _carry(name: str, run: Run, elsewhere: bool = False) -> dict[str, Any]:
    let_own_logs_through()
    if STEPS.get(name) == 1:
        for notice in check_before_paying(run):
            log.warning("%s", notice)
    return run_child(run.node(name), run) if elsewhere else carry_stage(name, run)


class Slots:
    """What stages compute on: this machine's CPU cores are one slot, each of its GPUs is another; one stage a slot."""

    def __init__(self, gpus: int | None = None) -> None:
        """`gpus` is their number; None counts them."""
        count = len(visible_gpus()) if gpus is None else gpus
        self._gpus = tuple(f"cuda:{number}" for number in range(count))
        self._taken: set[str] = set()

    def take(self, stage: Stage, run: Run) -> tuple[str, ...] | None:
        """Take the slots of a stage, none for one that computes elsewhere; None where it has to wait."""
        slots, count = self._choice(stage, run)
        free = [slot for slot in slots if slot not in self._taken][:count]
        if len(free) < count:
            return None
        self._taken.update(free)
        return tuple(free)

    def release(self, slots: Sequence[str]) -> None:
        """Give back what was taken."""
        self._taken.difference_update(slots)

    def device(self, slots: Sequence[str], device: str) -> str:
        """The `run.device` of a stage on these slots: its GPU where `auto` would have every stage take the first."""
        chooses = device == "auto" and len(self._gpus) > 1 and len(slots) == 1
        return slots[0] if chooses and slots[0] != CPU else device

    def _choice(self, stage: Stage, run: Run) -> tuple[tuple[str, ...], int]:
        """Slots that a stage can take, and how many of them it does."""
        options = run.settings.run
        on_device, every = stage.pool == "gpu", False  # on one GPU, or on every one
        if stage.name in STEPS:
            facts = run.paraphraser.facts
            if not facts.local:
                return (), 0
            on_device, every = facts.on_device, facts.every_gpu
        if not on_device or options.device == CPU:
            return (CPU,), 1
        if options.device == "auto":
            return (self._gpus, len(self._gpus) if every else 1) if self._gpus else ((CPU,), 1)
        return ("cuda:0" if options.device == "cuda" else options.device,), 1


class _Dag:
    """A run's stages as futures. One is submitted when its inputs are finished and what it computes on is free."""

    def __init__(self, run: Run, table: StageTable) -> None:
        self.run, self.slots, self.table = run, Slots(), table
        self.waiting = dict(run.nodes)
        self.futures: dict[str, PrefectFuture[Any]] = {}
        self.working: dict[PrefectFuture[Any], tuple[Node, tuple[str, ...]]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def carry(self) -> list[dict[str, Any]]:
        """Run all of them and return their rows of the stage table."""
        try:
            while self.waiting or self.working:
                self._submit_ready()
                self._finish(next(as_completed(list(self.working))))
        except BaseException as error:
            # A pool's threads hear no signal, and their processes would work on.
            self.run.stop.reason = error
            self.run.stop.set()
            wait(list(self.working))
            raise
        return self._table()

    def _submit_ready(self) -> None:
        for name, node in list(self.waiting.items()):
            inputs = [upstream for upstream in node.stage.inputs(self.run.settings) if upstream in self.run.stages]
            if any(upstream not in self.rows for upstream in inputs):
                continue
            # A stage of the user's own has no deployment.
            elsewhere = self.run.settings.run.placement == "deployments" and node.stage is STAGES.get(name)
            # Of deployments, the workers' limits say how many run at once.
            slots = () if elsewhere else self.slots.take(node.stage, self.run)
            if slots is None:
                continue
            del self.waiting[name]
            # A child run tries again by itself.
            task = stage_task(
                node, partial(_carry, elsewhere=elsewhere), self._placed(slots), 0 if elsewhere else retries()
            )
            upstream = [self.futures[name] for name in inputs]
            self.futures[name] = task.submit(name, wait_for=upstream)
            self.working[self.futures[name]] = node, slots

    def _placed(self, slots: tuple[str, ...]) -> Run:
        """The run for a stage on these slots."""
        options = self.run.settings.run
        device = self.slots.device(slots, options.device)
        if device == options.device:
            return self.run
        placed = copy.copy(self.run)
        placed.settings = self.run.settings.model_copy(update={"run": options.model_copy(update={"device": device})})
        return placed

    def _finish(self, future: PrefectFuture[Any]) -> None:
        node, slots = self.working.pop(future)
        self.slots.release(slots)
        row: Any = future.result(raise_on_failure=False)
        if isinstance(row, BaseException):
            # The run's state says no more than this text, and stages run side by side.
            row.args = (f"{node.name}: {row}", *row.args[1:])
            raise row
        self.rows[node.name] = row
        # Those that were finished come in one go.
        if row["state"] != "cached" or not any(self.run.artifact(name) for name in (*self.waiting, *self._at_work())):
            left = ", ".join([*self._at_work(), *self.waiting])
            self.table.show(self._table(), f"Stages of {self.run.settings.name}; left: {left or 'none'}")

    def _at_work(self) -> list[str]:
        return [node.name for node, _ in self.working.values()]

    def _table(self) -> list[dict[str, Any]]:
        return [self.rows[name] for name in self.run.nodes if name in self.rows]


def visible_gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs that a process sees, as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA sees no GPU from the first name on that is none, such as -1.
        return list(takewhile(GPU.fullmatch, map(str.strip, visible.split(","))))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    # Not by torch, which takes a flow's process seconds to import, and may be one without CUDA.
    listed = subprocess.run(
        [tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=60
    )
    return listed.stdout.split() if listed.returncode == 0 else []


def run_child(node: Node, run: Run) -> dict[str, Any]:
    """Run a stage through its own deployment and wait for it; a finished stage starts no run at all.

    The child run is keyed by its parent's run and the stage's fingerprint: a retried parent finds the children that it
    had, unless a source changed in between. One that still runs is waited for, one that ended without leaving its
    artifact (it failed, or the artifact was deleted since) runs again as itself, and nothing is started twice.
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
        # A run gets its own name when it begins; until then it has one by chance.
        reason = (state.message or "no reason given").rstrip(".")
        raise StageError(
            f"the child run {ended.name} of {name} ended as {state.name}: {reason}. Retry this run to go on from there"
        )
    if artifact is None:
        raise ArtifactError(
            f"{name} completed, but {name}/{node.fingerprint} is not under {store.location}: a source file or the "
            f"code has changed meanwhile; Retry this run. If it says so again, its worker has another "
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
    """The child once it has ended; if it ended before and is still `needed`, it runs once more."""
    with get_client(sync_client=True) as client:
        current = _patiently(lambda: client.read_flow_run(child.id), stop)
        if current.state and current.state.is_cancelling():
            # With its parent, some seconds after it: this parent runs again, so that cancel is no longer wanted.
            current = _ended(client, child, stop)
        if current.state and current.state.is_final() and needed():
            log.warning(
                "the child run %s is %s, but its artifact is not there: it runs again", current.name, current.state.name
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
    """The result of `call` once the server answers; a child works on while it is away, and so must its parent wait."""
    end, warned = time.monotonic() + AWAY_SECONDS, False
    while True:
        try:
            return call()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            away = not isinstance(error, PrefectHTTPStatusError) or error.response.status_code >= SERVER_ERROR
            if not away or time.monotonic() > end:
                raise
            if not warned:
                log.warning("the Prefect server does not answer and is asked again: %s", error)
            warned = True
        stop.wait(POLL_SECONDS)
        stop.check()


def _cancel_with_parent(child: FlowRun, reason: BaseException | None) -> None:
    """Cancel the child if this run is cancelled or paused, was interrupted by Ctrl-C, or fails for another stage.

    The server does the first by itself, half a minute later, and knows nothing of the others. A parent that ends
    otherwise, with its worker perhaps, leaves its child at work.
    """
    wanted = isinstance(reason, KeyboardInterrupt | Pause | Exception)
    # Whatever goes wrong here must not hide why this run ends.
    with suppress(Exception), get_client(sync_client=True) as client:
        parent = client.read_flow_run(UUID(flow_run.id))
        if wanted or (parent.state and parent.state.is_cancelling()):
            client.set_flow_run_state(child.id, Cancelling(message="The parent flow run was cancelled or interrupted."))
