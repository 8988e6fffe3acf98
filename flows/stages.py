"""A flow for each stage, which reuses a finished stage; the stages' tasks; and the flows' parameters.

The form of the Prefect UI shows the options that people set; `overrides` takes all others. It cannot collapse a group
and draws everything under `properties`, so the others are under `patternProperties`: the server still checks them, and
values that a deployment gives them stay.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any

from prefect import Flow, State, flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Crashed
from pydantic import BeforeValidator, Field, WithJsonSchema

from paraclip.flows.names import ADDRESS_VARIABLE, OWN_LOGGERS
from paraclip.flows.pause import stopped_by_pause
from paraclip.tasks.prefect_ui import (
    artifact_key,
    emit,
    in_flow_run,
    mark_decision,
    near_cap,
    publish_markdown,
    publish_table,
    published_progress,
    report_note,
)
from paraclip.tasks.results import Result, comparison_rows, stage_row, why
from paraclip.tasks.run.execute import STAGES, TAKEN, run_stage
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip.tasks.run.status import both, shown_progress
from paraclip_core.config import Settings
from paraclip_core.errors import ParaclipError, worth_a_retry
from paraclip_core.settings import SETTINGS, deployed_settings, parse_settings

log = logging.getLogger(__name__)

DEFAULTS = Settings()
"""Settings of a flow that is given none."""

RETRIES = 2
DELAYS = [10.0, 60.0]
"""Seconds before the first retry, and before each later one."""
FORM = (
    "name",
    *(f"data.{name}" for name in ("root", "scenes")),
    *(f"data.sources.0.{name}" for name in ("path", "images", "license")),
    "paraphrase.engine",
    "run.promote",
)
"""Dotted paths of the options in the form: those that decide data, cost and production. ``0`` is a list's item."""
SHOWN_TRACEBACK = "_traceback_was_shown"
"""Attribute that marks an error whose traceback is in the log."""
DROPPED = ("$defs", "operational")
"""Keys of a schema that mean nothing to a form."""


def form_schema() -> dict[str, Any]:
    """The JSON schema of :class:`Settings`, references resolved; it accepts all options and shows :data:`FORM`."""
    schema = Settings.model_json_schema()
    return _reduced(_resolved(schema, schema["$defs"]), "")


def _resolved(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolved(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].rpartition("/")[2]]
        # Keys next to a reference describe this use of it. A group's default is that of its options.
        node = {**named, **{name: value for name, value in node.items() if name not in ("$ref", "default")}}
    if node.get("additionalProperties") is False:
        # For a wrong name, the server's refusal then lists the right ones.
        node = {name: value for name, value in node.items() if name != "additionalProperties"}
        node["propertyNames"] = {"enum": list(node["properties"])}
    return {
        # Below `properties`, every name is an option's.
        name: {key: _resolved(item, definitions) for key, item in value.items()}
        if name == "properties"
        else _resolved(value, definitions)
        for name, value in node.items()
        if name not in DROPPED
    }


def _reduced(schema: dict[str, Any], prefix: str) -> dict[str, Any]:
    if isinstance(schema.get("items"), dict):
        return {**schema, "items": _reduced(schema["items"], f"{prefix}0.")}
    shown = list(dict.fromkeys(_names(prefix)))
    if not shown or "properties" not in schema:
        return _without_details(schema)
    options = schema["properties"]
    properties = {
        name: {**_reduced(options[name], f"{prefix}{name}."), "position": place} for place, name in enumerate(shown)
    }
    others = {f"^{re.escape(name)}$": option for name, option in options.items() if name not in properties}
    # A group's name says enough, and the form should fit on two screens.
    about = {"description": ""} if prefix else {}
    return {**schema, **about, "properties": properties, "patternProperties": others}


def _without_details(option: dict[str, Any]) -> dict[str, Any]:
    """An option as the form shows it: the first sentence of its description, and its alternatives without details."""
    arms = option.get("anyOf", ())
    hidden = [
        {**arm, "properties": {}, "patternProperties": {f"^{name}$": each for name, each in arm["properties"].items()}}
        if "properties" in arm
        else arm
        for arm in arms
    ]
    about = {"description": re.split(r"(?<=[.;:])\s", option.get("description", ""))[0].rstrip(";:")}
    return {**option, **about, **({"anyOf": hidden} if arms else {})}


def _names(prefix: str) -> Iterator[str]:
    return (path.removeprefix(prefix).partition(".")[0] for path in FORM if path.startswith(prefix))


Override = Annotated[str, Field(pattern=r"^\s*\w+(\.\w+)*\s*=", title="option=value")]
Overrides = tuple[Override, ...]


def _read_settings(given: Any) -> Any:
    """A flow's parameter as settings; errors say more than pydantic's own, such as the nearest option."""
    return parse_settings(given, SETTINGS) if isinstance(given, Mapping) else given


FormSettings = Annotated[Settings, BeforeValidator(_read_settings), WithJsonSchema(form_schema())]


def run_of(config: str, overrides: Sequence[str], settings: Settings) -> Run:
    """The run that a flow's parameters describe, at the worker's root."""
    return Run(deployed_settings(settings, config, overrides, os.environ))


def run_name() -> str:
    """Name of a flow run: the names of its flow and its configuration."""
    parameters = flow_run.parameters
    if own := [one.removeprefix("name=") for one in parameters.get("overrides") or () if one.startswith("name=")]:
        return f"{flow_run.flow_name}-{own[-1]}"
    settings = parameters.get("settings")
    name = settings.get("name") if isinstance(settings, dict) else getattr(settings, "name", None)
    config = parameters.get("config")
    return f"{flow_run.flow_name}-{PurePosixPath(config).stem if config else name or Settings().name}"


def carry_stage(name: str, run: Run) -> dict[str, Any]:
    """Run one stage in this process and return its row of the stage table."""
    let_own_logs_through()
    started = time.monotonic()
    node, cached, facts = run.node(name), run.artifact(name) is not None, set[str]()
    for notice in node.stage.check_before(run):
        log.warning("%s", notice)
    with shown_progress(name) as progress:
        paraphraser = node.stage.paraphraser
        cap = near_cap(run.settings.name, None if paraphraser is None else paraphraser(run).engine())
        shown = both(both(progress, published_progress(run.settings.name, name)), cap)
        artifact = run_stage(node, run, both(shown, lambda done, total, **new: facts.update(new)))
    if rows := node.stage.samples(artifact):
        publish_table(artifact_key(run.settings.name, name, "samples"), rows, f"Some answers of {name}")
    taken = TAKEN in facts
    row = stage_row(artifact, cached or taken, time.monotonic() - started)
    how = "took another run's result after" if taken else f"{row['state']} in"
    log.info("%s: %s %.1f s, %s", name, how, row["seconds"], artifact.path)
    return row


def end_earlier_tasks() -> None:
    """Mark tasks as crashed that an earlier, killed try of this flow run left running; nothing else would."""
    with suppress(Exception), get_client(sync_client=True) as client:
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [flow_run.id]}}),
            task_run_filter=TaskRunFilter.model_validate(
                {
                    "state": {"type": {"any_": [StateType.RUNNING, StateType.PENDING]}},
                    # The state of a child run's task follows the child.
                    "subflow_runs": {"exists_": False},
                }
            ),
        )
        for one in tasks:
            client.set_task_run_state(one.id, Crashed(message="its process was gone when the run was retried"), True)


def retries() -> int:
    """How often a stage is retried in this process: never for `paraclip run`, whose user is watching."""
    return RETRIES if deployment.id else 0


def stage_task(node: Node, carry: Callable[[str, Run], dict[str, Any]], run: Run, retries: int) -> Any:
    """The task of a stage, whose state says what was made or found. It is retried after errors that may pass.

    `carry` runs the stage and returns its row of the stage table.
    """

    def stage(name: str) -> State[Any]:
        try:
            run.stop.check()
            row = carry(name, run)
        except ParaclipError:
            if not run.stop.is_set():
                raise
            return Cancelled(message="ended with its run; the next one goes on from there")
        return Completed(name="Cached" if row["state"] == "cached" else "Completed", message=_says(row), data=row)

    return task(
        name=node.name,
        task_run_name=node.name,
        description=node.stage.about,
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=retries,
        retry_condition_fn=lambda _, task_run, state: _tried_again(state.data, task_run.run_count, run),
    )(stage)


def _says(row: Mapping[str, Any]) -> str:
    """A stage's row in one line."""
    counts = {"rows": row["rows"], "rejected": row["rejected"]}
    return ", ".join([row["fingerprint"], *(f"{name} {count}" for name, count in counts.items() if count)])


def _tried_again(error: object, attempt: int, run: Run) -> bool:
    """Whether a stage is retried after this attempt; waits until the retry is due, and Prefect then starts it at once.

    Prefect's own delay would sleep through a cancel.
    """
    if not worth_a_retry(error, attempt):
        return False
    seconds = DELAYS[min(attempt, len(DELAYS)) - 1]
    log.warning("try %d failed, the next one starts in %g s: %s", attempt, seconds, error)
    return not run.stop.wait(seconds)


def publish_result(settings: Settings, result: Result) -> None:
    """Show the comparison and a link to the report in the UI."""
    if not in_flow_run():
        return
    if result.summary:
        emit(f"run.{result.verdict}", settings.name, result.decision or "", verdict=result.verdict)
        mark_decision(result.verdict or "hold")
        rows = comparison_rows(result.summary)
        text = ". ".join([f"Verdict: {result.verdict} ({why(result.summary)})", *result.summary.get("notes", ())])
        publish_table(artifact_key(settings.name, "comparison"), rows, text)
    if result.report and result.summary_path:
        note = report_note(settings.name, result.report, result.summary_path, os.environ.get(ADDRESS_VARIABLE))
        publish_markdown(artifact_key(settings.name, "report"), note, f"Report of {settings.name}")


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


def _outlive_worker() -> None:
    """Discard a flow run's console lines once the worker that reads them is gone.

    Prefect writes them with rich, which ends the process at the first line that nobody reads.
    """
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            console: Any = getattr(handler, "console", None)
            if hasattr(console, "on_broken_pipe"):
                console.on_broken_pipe = partial(_silence, console)


def _silence(console: Any) -> None:
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # What stays in the stream's buffer would fail once more when it is flushed at the end.
    os.dup2(nowhere, console.file.fileno())
    os.close(nowhere)


# Every flow's module loads this one, and a run's first lines come before its body.
_outlive_worker()
for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_traceback_once)


def _stage_flow(stage: Stage) -> Flow[..., dict[str, Any]]:
    def carry(config: str = "", overrides: Overrides = (), settings: FormSettings = DEFAULTS) -> dict[str, Any]:
        run = run_of(config, overrides, settings)
        end_earlier_tasks()
        with stopped_by_pause(run):
            return stage_task(run.node(stage.name), carry_stage, run, retries())(stage.name).data

    carry.__name__ = stage.name
    return flow(name=stage.name, description=stage.about, flow_run_name=run_name)(carry)


STAGE_FLOWS = {name: _stage_flow(stage) for name, stage in STAGES.items()}
"""Every stage's flow by the stage's name."""

# Deployments name them `paraclip.flows.stages.<stage>`.
globals().update(STAGE_FLOWS)
