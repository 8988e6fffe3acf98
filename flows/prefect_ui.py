"""What a run shows in the Prefect UI, under stable keys; outside a flow run, nothing."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event, emit_event
from prefect.runtime import flow_run
from prometheus_client import Gauge

from paraclip.tasks.run.run import Ui
from paraclip.tasks.run.status import shown_facts
from paraclip_core.errors import with_notes, worth_a_retry
from paraclip_core.paraphrase.engines import Engine, PaidEngine
from paraclip_core.progress import Fact, Progress, silent

log = logging.getLogger(__name__)

EVENTS = (
    "cap.near", "run.promote", "run.hold",
    "channel.asks", "channel.moved", "channel.held", "channel.rolled_back",
)  # fmt: skip
"""Events that runs emit."""
DECISIONS = frozenset(("promote", "hold", "moved", "held"))
NEAR = 0.8
"""Share of a spending cap above which the cap is near."""
_near: set[str | None] = set()
"""Flow runs that have emitted `cap.near`."""

STAGE_TABLE = "stages"
"""Name of the table of a run's stages."""
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


class PrefectUi(Ui):
    """What one run shows in the Prefect UI, under keys that stay the same from run to run of its name.

    A failure to show the work never loses the work: it is a warning in the log.
    """

    def __init__(self, run: str) -> None:
        """Show the run, or the channel, of this name."""
        self.run = run

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], text: str) -> None:
        """Show rows as a table below a Markdown text; replaces what this flow run showed under the name."""
        key = artifact_key(self.run, name)

        def show() -> None:
            table = [as_text(row) for row in rows]
            wanted = {"key": {"any_": [key]}, "flow_run_id": {"any_": [flow_run.id]}}
            with get_client(sync_client=True) as client:
                # Including an earlier attempt's.
                shown = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted), limit=1)
                if shown:
                    client.update_artifact(shown[0].id, ArtifactUpdate(data=json.dumps(table), description=text))
                else:
                    create_table_artifact(table=table, key=key, description=text)

        _try(f"the artifact {key} is not shown", show)

    def markdown(self, name: str, text: str, description: str) -> None:
        """Show Markdown, as a new version of the artifact of this name."""
        key = artifact_key(self.run, name)
        show = partial(create_markdown_artifact, markdown=text, key=key, description=description)
        _try(f"the artifact {key} is not shown", show)

    def event(self, event: str, text: str, **facts: Any) -> None:
        """Emit `paraclip.<event>`, see :data:`EVENTS`."""
        _try(f"the event {event} is not sent", lambda: emit_event(**self._event(event, text, facts)))

    def send_event(self, event: str, text: str, **facts: Any) -> None:
        """Send an event from a command, outside any flow run, to the server at PREFECT_API_URL."""
        try:
            # `emit_event` sends in a thread that retries for half a minute after the command has ended.
            with get_client(sync_client=True) as client:
                event_ = Event(**self._event(event, text, facts))
                client.request("POST", "/events", json=[event_.model_dump(mode="json")])
        except Exception as error:
            log.warning("the event %s is not sent: %s", event, error)

    def decision(self, decision: str) -> None:
        """Tag the flow run with the decision, one of :data:`DECISIONS`, for lists and filters in the UI."""

        def tag() -> None:
            with get_client(sync_client=True) as client:
                run = UUID(flow_run.id)
                # A retried run decides again.
                tags = {decision, *(client.read_flow_run(run).tags or ())} - (DECISIONS - {decision})
                client.update_flow_run(run, tags=tags)

        _try(f"the tag {decision} is not set", tag)

    def failure(self, rows: Sequence[Mapping[str, Any]], error: BaseException) -> None:
        """Show the table of the stages with what failed, what is finished, and what to do."""
        finished = ", ".join(row["stage"] for row in rows) or "nothing yet"
        mend = "" if worth_a_retry(error) else "Fix what it names. "
        text = MARKUP.sub(r"\\\g<0>", with_notes(error))
        self.table(
            STAGE_TABLE,
            rows,
            f"**Failed:** {text}\n\n**Finished, and not run again:** {finished}\n\n{mend}**Retry** in the menu at the "
            "top right of the run's page continues from there; with other settings, start a new run.",
        )

    def progress(self, stage: str, engine: Engine | None = None) -> Progress:
        """A progress shown in the UI, updated every few seconds, and exported to Prometheus as `paraclip_stage`.

        Prefect serves the metrics if PREFECT_CLIENT_METRICS_ENABLED is set. If the stage asks an `engine` with a
        spending cap, a cap that is near is an event.
        """
        if not in_flow_run():
            return silent
        key, description = artifact_key(self.run, stage, "progress"), f"Progress of {stage}"
        artifact, last = None, 0.0

        def show(percent: float, text: str) -> None:
            nonlocal artifact
            if artifact is None:
                artifact = cast(UUID, create_progress_artifact(progress=percent, key=key, description=text))
            else:
                update_progress_artifact(artifact_id=artifact, progress=percent, description=text)

        def progress(done: int, total: int | None, **facts: Fact) -> None:
            nonlocal last
            for name, value in {"done": done, "total": total, **facts}.items():
                if isinstance(value, int | float):
                    _gauge().labels(self.run, stage, name).set(value)
            if isinstance(engine, PaidEngine) and engine.max_spend:
                self._warn_near_cap(facts.get("spend"), engine)
            now = time.monotonic()
            if not total or (now - last < PROGRESS_SECONDS and done < total):
                return
            last = now
            text = f"{description}: {shown_facts(facts)}" if facts else description
            _try(f"the artifact {key} is not shown", partial(show, round(100 * min(done, total) / total, 1), text))

        return progress

    def _warn_near_cap(self, spend: Fact | None, engine: PaidEngine) -> None:
        """Emit `cap.near`, once per flow run, when at least 80 % of a spending cap is spent."""
        cap = engine.max_spend
        if isinstance(spend, int | float) and spend >= NEAR * cap and flow_run.id not in _near:
            _near.add(flow_run.id)
            text = f"{spend:.4g} of {engine.cap}={cap:g} is spent; at the cap the run stops"
            self.event("cap.near", text, spend=spend, cap=cap)

    def _event(self, event: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        resource = {"prefect.resource.id": f"paraclip.run.{artifact_key(self.run)}", "prefect.resource.name": self.run}
        return {"event": f"paraclip.{event}", "resource": resource, "payload": {"text": text, **facts}}


def rolled_back(decision: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The event of a rollback: its name, its sentence and its facts."""
    facts = {part: decision[part] for part in ("channel", "before", "after")}
    return "channel.rolled_back", f"{decision['channel']}: {decision['reason']}", facts


@cache
def _gauge() -> Gauge:
    return Gauge("paraclip_stage", "How far a stage of a run is, its rates and its spend", ("run", "stage", "fact"))


def _try(failure: str, tell: Callable[[], object]) -> None:
    if not in_flow_run():
        return
    try:
        tell()
    except Exception as error:
        log.warning("%s: %s", failure, error)
