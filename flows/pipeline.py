"""The whole DAG of one run, as one flow."""

from __future__ import annotations

import copy
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.states import Completed

from paraclip.flows.children import run_child
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
from paraclip.tasks.publish import artifact_key, publish_table
from paraclip.tasks.results import Result
from paraclip.tasks.run.dag import STAGES
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip.tasks.stages.paraphrase import STEPS

log = logging.getLogger(__name__)

CPU = "cpu"
"""The slot of all CPU cores."""
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
    check_run_name(run.settings.name, run.store)
    # Now: captions that come while it runs are the next run's, and must not leave this one between two sets of them.
    nodes = run.nodes
    run.check_trackers()
    with run.store.mark_run({name: node.fingerprint for name, node in nodes.items()}):
        rows = _Dag(run).carry()
        result = record_result(run, rows, run.artifacts())
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
        on_device, every = stage.pool == "gpu", stage.trains and options.processes > 1
        if stage.name in STEPS:
            facts = run.paraphraser.facts
            if not facts.local:
                return (), 0
            # Such an engine, or each shard, has a process on every GPU.
            on_device, every = facts.on_device, facts.one_process_a_machine is not None or options.shards > 1
        if not on_device or options.device == CPU:
            return (CPU,), 1
        if options.device == "auto":
            return (self._gpus, len(self._gpus) if every else 1) if self._gpus else ((CPU,), 1)
        return ("cuda:0" if options.device == "cuda" else options.device,), 1


class _Dag:
    """A run's stages as futures. One is submitted when its inputs are finished and what it computes on is free."""

    def __init__(self, run: Run) -> None:
        self.run, self.slots = run, Slots()
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
        if row["state"] != "cached" or not (self.waiting or self.working):
            name = self.run.settings.name
            publish_table(artifact_key(name, "stages"), self._table(), f"Stages of {name}")

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
