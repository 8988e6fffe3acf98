"""The whole DAG of one run as one flow; its stages are tasks, or child runs that survive a retry of the flow."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.states import Completed

from paraclip.flows.children import run_child
from paraclip.flows.form import DEFAULTS, FormSettings, Overrides
from paraclip.flows.pause import stopped_by_pause
from paraclip.flows.prefect_ui import STAGE_TABLE, PrefectUi
from paraclip.flows.stages import (
    carry_stage,
    end_earlier_tasks,
    let_own_logs_through,
    publish_result,
    retries,
    run_name,
    run_of,
    stage_task,
)
from paraclip.tasks.results import Result, Row
from paraclip.tasks.run.drive import drive
from paraclip.tasks.run.run import Node, Run
from paraclip.tasks.run.slots import Slots
from paraclip_core.settings import deployed_settings

log = logging.getLogger(__name__)


@flow(name="pipeline", flow_run_name=run_name)
def pipeline(config: str = "", overrides: Overrides = (), settings: FormSettings = DEFAULTS) -> State[Any]:
    """Run every stage and return the result; stages that do not need each other run concurrently.

    A retry runs this function again from the top. Finished stages are found by their fingerprints in milliseconds,
    so it goes on with those that failed or were ended.

    Args:
        config: YAML file in place of `settings`: a path on the worker, or a URL.
        overrides: any options, which win over both: `finetune.epochs=3`; `paraclip config schema` lists them.
        settings: the options that are set most often.
    """
    return _ended(run_of(deployed_settings(settings, config, overrides, os.environ)))


def pipeline_of(run: Run) -> dict[str, Any]:
    """Call the pipeline as a flow of this process, with a run that is at hand; returns the result."""
    run.ui = PrefectUi(run.settings.name)

    @flow(name=pipeline.name, flow_run_name=run_name)
    def at_hand(settings: FormSettings) -> State[Any]:
        return _ended(run)

    # Prefect shows the parameters.
    return cast(dict[str, Any], at_hand(settings=run.settings))


def _ended(run: Run) -> State[Any]:
    result = run_stages(run)
    return Completed(message=result.decision, data=result.as_json())


def run_stages(run: Run) -> Result:
    """Run every stage, here or in its own deployment, and show the results; for use inside a flow."""
    let_own_logs_through()
    end_earlier_tasks()
    ui, finished = PrefectUi(run.settings.name), list[Row]()

    def show(rows: list[Row], left: list[str]) -> None:
        finished[:] = rows
        # Stages that were finished before come all at once.
        if rows[-1]["state"] != "cached" or not any(run.artifact(stage) for stage in left):
            ui.table(STAGE_TABLE, rows, f"Stages of {ui.run}" + (f"; left: {', '.join(left)}" if left else ""))

    try:
        with stopped_by_pause(run):
            result = drive(run, _Tasks(run), show)
    except Exception as error:
        ui.failure(finished, error)
        raise
    publish_result(run.settings, result)
    return result


class _Tasks:
    """A run's stages as Prefect futures; each is submitted when the device it computes on is free."""

    def __init__(self, run: Run) -> None:
        self.run, self.slots, self.elsewhere = run, Slots(), run.settings.run.placement == "deployments"
        self.futures: dict[str, PrefectFuture[Any]] = {}
        self.working: dict[PrefectFuture[Any], tuple[str, tuple[str, ...]]] = {}

    def start(self, node: Node, inputs: Sequence[str]) -> bool:
        # For deployments, the workers' limits decide how many run at once.
        slots = () if self.elsewhere else self.slots.take(node.stage, self.run)
        if slots is None:
            return False
        # A child run retries by itself.
        tries = 0 if self.elsewhere else retries()
        task = stage_task(node, partial(_carry, elsewhere=self.elsewhere), self._placed(slots), tries)
        future = task.submit(node.name, wait_for=[self.futures[name] for name in inputs])
        self.futures[node.name], self.working[future] = future, (node.name, slots)
        return True

    def next(self) -> tuple[str, Row | BaseException]:
        future = next(as_completed(list(self.working)))
        name, slots = self.working.pop(future)
        self.slots.release(slots)
        return name, future.result(raise_on_failure=False)

    def wait(self) -> None:
        wait(list(self.working))

    def _placed(self, slots: tuple[str, ...]) -> Run:
        """The run with the device of these slots."""
        options = self.run.settings.run
        device = self.slots.device(slots, options.device)
        if device == options.device:
            return self.run
        placed = copy.copy(self.run)
        placed.settings = self.run.settings.model_copy(update={"run": options.model_copy(update={"device": device})})
        return placed


def _carry(name: str, run: Run, elsewhere: bool) -> Row:
    let_own_logs_through()
    return run_child(run.node(name), run) if elsewhere else carry_stage(name, run)
