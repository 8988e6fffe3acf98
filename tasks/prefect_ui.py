"""What a run shows in the Prefect UI, under stable keys. Outside a flow run, nothing is shown."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any
from urllib.parse import quote
from uuid import UUID

from paraclip.tasks.run.status import shown_facts
from paraclip_core.errors import with_notes, worth_a_retry
from paraclip_core.paraphrase.engines import Engine, PaidEngine
from paraclip_core.progress import Fact, Progress, silent

log = logging.getLogger(__name__)

EVENTS = (
    "cap.near", "drift", "run.promote", "run.hold",
    "channel.asks", "channel.moved", "channel.held", "channel.rolled_back",
)  # fmt: skip
"""Events that runs emit."""
DECISIONS = frozenset(("promote", "hold", "moved", "held"))
NEAR = 0.8
"""Share of a spending cap above which the cap is near."""
_near: set[str | None] = set()
"""Flow runs that have emitted `cap.near`."""

PROGRESS_SECONDS = 5.0
MARKUP = re.compile(
    r"""[\\`*~\[\]<>]                # code, emphasis, links, images, HTML
    | (?<![^\W_])_ | _(?![^\W_])    # emphasis, for which one inside a word is none
    | &(?=\#?\w+;)                  # an entity
    | :(?=//) | (?<=www)\. | (?<=\w)@(?=\w)    # addresses, which become links on their own
    | ^[#+-](?=[#\s])               # a heading or an item of a list
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Matches only characters that begin markup in their context: the newer of the UI's two versions shows backslashes."""


def in_flow_run() -> bool:
    """Whether this code runs inside a Prefect flow or task run."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def artifact_key(*parts: str) -> str:
    """A key that Prefect accepts (lowercase letters, digits and dashes), the same for every run of the same name."""
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts))) or "paraclip"


def as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row with escaped texts, and with counts by name as text, which the UI would show as an object.

    The older UI renders cells as Markdown, and a caption may hold a link, or an image that a browser would fetch from
    anywhere.
    """
    cells = {}
    for name, cell in row.items():
        text = ", ".join(f"{key} {count}" for key, count in cell.items()) if isinstance(cell, Mapping) else cell
        cells[name] = MARKUP.sub(r"\\\g<0>", text) if isinstance(text, str) else text
    return cells


def publish_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Show `rows` as a table with a Markdown description; replaces what this flow run showed under the key."""

    def show() -> None:
        from prefect import get_client
        from prefect.artifacts import create_table_artifact
        from prefect.client.schemas.actions import ArtifactUpdate
        from prefect.client.schemas.filters import ArtifactFilter
        from prefect.runtime import flow_run

        table = [as_text(row) for row in rows]
        wanted = {"key": {"any_": [key]}, "flow_run_id": {"any_": [flow_run.id]}}
        with get_client(sync_client=True) as client:
            # Including an earlier attempt's.
            shown = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted), limit=1)
            if shown:
                client.update_artifact(shown[0].id, ArtifactUpdate(data=json.dumps(table), description=description))
            else:
                create_table_artifact(table=table, key=key, description=description)

    _try(f"the artifact {key} is not shown", show)


class StageTable:
    """The stages of a run: one artifact of its flow run, updated on each change."""

    def __init__(self, run: str) -> None:
        """Show the stages of the run named `run`."""
        self._key = artifact_key(run, "stages")
        self._rows: Sequence[Mapping[str, Any]] = ()

    def show(self, rows: Sequence[Mapping[str, Any]], text: str) -> None:
        """Show the rows of finished stages below a Markdown text."""
        self._rows = rows
        publish_table(self._key, rows, text)

    def fail(self, error: BaseException) -> None:
        """Show what failed, what is finished, and what to do."""
        finished = ", ".join(row["stage"] for row in self._rows) or "nothing yet"
        mend = "" if worth_a_retry(error, 1) else "Fix what it names. "
        text = MARKUP.sub(r"\\\g<0>", with_notes(error))
        self.show(
            self._rows,
            f"**Failed:** {text}\n\n**Finished, and not run again:** {finished}\n\n{mend}**Retry** in the menu at the "
            "top right of the run's page continues from there; with other settings, start a new run.",
        )


def publish_markdown(key: str, text: str, description: str) -> None:
    """Show Markdown, as a new version of the artifact with the same key."""

    def show() -> None:
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(markdown=text, key=key, description=description)

    _try(f"the artifact {key} is not shown", show)


def emit(event: str, run: str, text: str, **facts: Any) -> None:
    """Emit `paraclip.<event>` (one of :data:`EVENTS`) about a run, if inside a flow run."""

    def send() -> None:
        from prefect.events import emit_event

        emit_event(**_event(event, run, text, facts))

    _try(f"the event {event} is not sent", send)


def announce_rollback(decision: Mapping[str, Any]) -> None:
    """Emit that a channel was rolled back, if it was: from a flow run, or from a command to the server at
    PREFECT_API_URL."""
    name, facts = decision["channel"], {part: decision[part] for part in ("channel", "before", "after")}
    event = "channel.rolled_back", name, f"{name}: {decision['reason']}"
    if not decision["moved"]:
        return
    if in_flow_run() or not os.environ.get("PREFECT_API_URL"):
        emit(*event, **facts)
        return
    from prefect import get_client
    from prefect.events import Event

    try:
        # Prefect sends events in a thread that retries for half a minute after the command has ended.
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[Event(**_event(*event, facts)).model_dump(mode="json")])
    except Exception as error:
        log.warning("the event %s is not sent: %s", event[0], error)


def _event(event: str, run: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    resource = {"prefect.resource.id": f"paraclip.run.{artifact_key(run)}", "prefect.resource.name": run}
    return {"event": f"paraclip.{event}", "resource": resource, "payload": {"text": text, **facts}}


def mark_decision(decision: str) -> None:
    """Tag the flow run with the decision, one of :data:`DECISIONS`, for lists and filters in the UI."""

    def tag() -> None:
        from prefect import get_client
        from prefect.runtime import flow_run

        with get_client(sync_client=True) as client:
            run = UUID(flow_run.id)
            # A retried run decides again.
            tags = {decision, *(client.read_flow_run(run).tags or ())} - (DECISIONS - {decision})
            client.update_flow_run(run, tags=tags)

    _try(f"the tag {decision} is not set", tag)


def near_cap(run: str, engine: Engine | None) -> Progress:
    """A progress that emits `cap.near`, once per flow run, when at least 80 % of an engine's spending cap is spent."""
    if not isinstance(engine, PaidEngine) or not engine.max_spend:
        return silent
    option, cap = engine.cap, engine.max_spend

    def progress(done: int, total: int | None, **facts: Fact) -> None:
        spend = facts.get("spend")
        if not isinstance(spend, int | float) or spend < NEAR * cap or not in_flow_run():
            return
        from prefect.runtime import flow_run

        if flow_run.id not in _near:
            _near.add(flow_run.id)
            text = f"{spend:.4g} of {option}={cap:g} is spent; at the cap the run stops"
            emit("cap.near", run, text, spend=spend, cap=cap)

    return progress


def published_progress(run: str, stage: str) -> Progress:
    """A progress shown in the UI, updated every few seconds, and exported to Prometheus as `paraclip_stage`.

    Prefect serves the metrics if PREFECT_CLIENT_METRICS_ENABLED is set.
    """
    if not in_flow_run():
        return silent
    key, description = artifact_key(run, stage, "progress"), f"Progress of {stage}"
    state: dict[str, Any] = {"id": None, "last": 0.0}

    def show(percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if state["id"] is None:
            state["id"] = create_progress_artifact(progress=percent, key=key, description=text)
        else:
            update_progress_artifact(artifact_id=state["id"], progress=percent, description=text)

    def progress(done: int, total: int | None, **facts: Fact) -> None:
        for name, value in {"done": done, "total": total, **facts}.items():
            if isinstance(value, int | float):
                _gauge().labels(run, stage, name).set(value)
        now = time.monotonic()
        if not total or (now - state["last"] < PROGRESS_SECONDS and done < total):
            return
        state["last"] = now
        text = f"{description}: {shown_facts(facts)}" if facts else description
        _try(f"the artifact {key} is not shown", partial(show, round(100 * min(done, total) / total, 1), text))

    return progress


@cache
def _gauge() -> Any:
    from prometheus_client import Gauge

    return Gauge("paraclip_stage", "How far a stage of a run is, its rates and its spend", ("run", "stage", "fact"))


def report_note(name: str, report: str, summary: str, pages: str | None = None) -> str:
    """Markdown that links to a run's report; `pages` is the address that serves the folder of all results, if any.

    The UI does not follow links to files.
    """
    files = f"the file `{report}`, for machines `{summary}`\n"
    if not pages:
        return f"The report is a separate page; open it in a browser: {files}"
    return f"[The report]({pages.rstrip('/')}/{quote(name)}/report.html) · {files}"


def _try(failure: str, tell: Callable[[], None]) -> None:
    if not in_flow_run():
        return
    try:
        tell()
    except Exception as error:
        # A failure to show the work must not lose the work.
        log.warning("%s: %s", failure, error)
