"""A flow for each stage, which reuses a finished stage; and the stages' tasks, in these flows and in the pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from prefect import Flow, State, flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Crashed
from rich.console import Console

from paraclip.flows.form import DEFAULTS, FormSettings, Overrides
from paraclip.flows.names import OWN_LOGGERS
from paraclip.flows.pause import stopped_by_pause
from paraclip.flows.prefect_ui import PrefectUi
from paraclip.tasks.results import Result, Row, comparison_rows
from paraclip.tasks.run.execute import STAGES, carry
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip.tasks.run.status import shown_progress, together
from paraclip_core.config import Settings
from paraclip_core.errors import ParaclipError, worth_a_retry
from paraclip_core.settings import deployed_settings

log = logging.getLogger(__name__)

RETRIES = 2
DELAYS = [10.0, 60.0]
"""Seconds before the first retry, and before each later one."""
SHOWN_TRACEBACK = "_traceback_was_shown"
"""Attribute that marks an error whose traceback is in the log."""


def run_of(settings: Settings) -> Run:
    """A run of these settings that shows what its stages find in Prefect's UI."""
    run = Run(settings)
    run.ui = PrefectUi(settings.name)
    return run


def run_name() -> str:
    """Name of a flow run: the names of its flow and its configuration."""
    parameters = flow_run.parameters
    overrides = parameters.get("overrides") or ()
    if own := [override.removeprefix("name=") for override in overrides if override.startswith("name=")]:
        return f"{flow_run.flow_name}-{own[-1]}"
    settings = parameters.get("settings")
    name = settings.get("name") if isinstance(settings, dict) else getattr(settings, "name", None)
    config = parameters.get("config")
    return f"{flow_run.flow_name}-{PurePosixPath(config).stem if config else name or Settings().name}"


def carry_stage(name: str, run: Run) -> Row:
    """Run one stage in this process and return its row of the stage table."""
    let_own_logs_through()
    node, ui = run.node(name), PrefectUi(run.settings.name)
    with shown_progress(name) as bar:
        asked = node.stage.paraphraser
        progress = together(bar, ui.progress(name, None if asked is None else asked(run).engine()))
        artifact, row = carry(node, run, progress, partial(log.warning, "%s"), partial(log.info, "%s"))
    if rows := node.stage.samples(artifact):
        ui.table(f"{name}-samples", rows, f"Some answers of {name}")
    return row


def end_earlier_tasks() -> None:
    """Mark tasks as crashed that an earlier, killed try of this flow run left running; nothing else would."""
    # The state of a child run's task follows the child.
    running = {"type": {"any_": [StateType.RUNNING, StateType.PENDING]}}
    wanted = {"state": running, "subflow_runs": {"exists_": False}}
    with suppress(Exception), get_client(sync_client=True) as client:
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [flow_run.id]}}),
            task_run_filter=TaskRunFilter.model_validate(wanted),
        )
        for left in tasks:
            client.set_task_run_state(left.id, Crashed(message="its process was gone when the run was retried"), True)


def retries() -> int:
    """How often a stage is retried in this process: never for `paraclip run`, whose user is watching."""
    return RETRIES if deployment.id else 0


def stage_task(node: Node, work: Callable[[str, Run], Row], run: Run, retries: int) -> Any:
    """The task of a stage, whose state says what was made or found. It is retried after errors that may pass.

    `work` runs the stage and returns its row of the stage table.
    """

    def stage(name: str) -> State[Any]:
        try:
            run.stop.check()
            row = work(name, run)
        except ParaclipError:
            if not run.stop.is_set():
                raise
            return Cancelled(message="ended with its run; the next one goes on from there")
        counts = (f"{name} {row[name]}" for name in ("rows", "rejected") if row[name])
        name = "Cached" if row["state"] == "cached" else "Completed"
        return Completed(name=name, message=", ".join([row["fingerprint"], *counts]), data=row)

    return task(
        name=node.name,
        task_run_name=node.name,
        description=node.stage.about,
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=retries,
        retry_condition_fn=lambda _, task_run, state: _tried_again(state.data, task_run.run_count, run),
    )(stage)


def _tried_again(error: object, attempt: int, run: Run) -> bool:
    """Whether a stage is retried after this attempt; waits until the retry is due, and Prefect then starts it at once.

    Prefect's own delay would sleep through a cancel.
    """
    if not worth_a_retry(error):
        return False
    seconds = DELAYS[min(attempt, len(DELAYS)) - 1]
    log.warning("try %d failed, the next one starts in %g s: %s", attempt, seconds, error)
    return not run.stop.wait(seconds)


def publish_result(settings: Settings, result: Result) -> None:
    """Show the comparison and a link to the report in the UI."""
    ui = PrefectUi(settings.name)
    if result.summary:
        ui.event(f"run.{result.verdict}", result.decision or "", verdict=result.verdict)
        ui.decision(result.verdict or "hold")
        text = ". ".join([f"Verdict: {result.verdict} ({result.summary['reason']})", *result.summary.get("notes", ())])
        ui.table("comparison", comparison_rows(result.summary), text)
    if result.report and result.summary_path:
        # The UI does not follow links to files.
        note = f"Open in a browser: the file `{result.report}`; for machines `{result.summary_path}`\n"
        ui.markdown("report", note, f"Report of {settings.name}")


def let_own_logs_through() -> None:
    """Lower the threshold of loggers that have none of their own.

    Prefect sends the lines of PREFECT_LOGGING_EXTRA_LOGGERS to the UI, but leaves the threshold at warnings.
    """
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def _traceback_once(record: logging.LogRecord) -> bool:
    """Show the traceback of an error only below the first line that reports it.

    Prefect logs it for the task and once more for the flow.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        if getattr(error, SHOWN_TRACEBACK, False):
            record.exc_info = None
        else:
            setattr(error, SHOWN_TRACEBACK, True)
    return True


def _go_silent(self: Console) -> None:
    """Discard a flow run's console lines once the worker that reads them is gone.

    Prefect writes them with rich, which otherwise ends the process at the first line that nobody reads.
    """
    self.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # What stays in the stream's buffer would fail once more when it is flushed at the end.
    os.dup2(nowhere, self.file.fileno())
    os.close(nowhere)


# Every flow's module loads this one, and a run's first lines come before its body.
Console.on_broken_pipe = _go_silent
for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_traceback_once)


def _stage_flow(stage: Stage) -> Flow[..., Row]:
    def body(config: str = "", overrides: Overrides = (), settings: FormSettings = DEFAULTS) -> Row:
        run = run_of(deployed_settings(settings, config, overrides, os.environ))
        end_earlier_tasks()
        with stopped_by_pause(run):
            return stage_task(run.node(stage.name), carry_stage, run, retries())(stage.name).data

    body.__name__ = stage.name
    return flow(name=stage.name, description=stage.about, flow_run_name=run_name)(body)


STAGE_FLOWS = {name: _stage_flow(stage) for name, stage in STAGES.items()}
"""Every stage's flow by the stage's name."""

# Deployments name them `paraclip.flows.stages.<stage>`.
globals().update(STAGE_FLOWS)
