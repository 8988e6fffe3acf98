"""Alerts about runs: automations that forward their events to a webhook, Slack or a mailbox.

    python -m paraclip.flows.alerts URL [EVENT …]

forwards the events of runs on the server that PREFECT_API_URL names: all of them, or only those that are given
(`run.failed`, `channel.held`, …). Call it again to change the address and the events. `URL` is one of

* `https://…`: every event is posted as JSON with a `text`;
* `https://hooks.slack.com/services/…`: as a message of Slack;
* `mailto://USER:PASSWORD@HOST:PORT?from=…&to=…` (`mailtos` for TLS): as e-mail;
* an address of any other service in Apprise's form, which Prefect's notification blocks understand.

The server reports what a run cannot report itself because it crashed or never started: :data:`ALERTS`. Any other
Prefect automation can use the same events: `paraclip.*`, with the resource `paraclip.run.<name>`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit
from uuid import UUID

from apprise import Apprise
from prefect import get_client
from prefect.automations import Automation
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable

from paraclip.flows.automations import PREFIX, put_automation, trigger_of
from paraclip.flows.deployments import Existing
from paraclip.flows.names import OURS, RUNS
from paraclip.flows.prefect_ui import EVENTS
from paraclip_core.errors import ConfigError


class Alert(NamedTuple):
    """An alert that the Prefect server raises about runs and pools: an event comes, or does not come in time."""

    text: str
    """The message, as a Jinja expression over the event."""
    trigger: EventTrigger


ALERTS = {
    "run.failed": Alert(
        "event.resource.name ~ ' is ' ~ event.payload.validated_state.name ~ ': ' "
        "~ event.payload.validated_state.message",
        trigger_of(
            ("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"),
            3600,
            RUNS,
            related=(OURS,),
            # A run's name has its flow and its configuration in it: a schedule may fail every ten minutes.
            for_each=("prefect.resource.name",),
        ),
    ),
    "run.waiting": Alert(
        "event.resource.name ~ ' has waited for a worker for an hour'",
        trigger_of(
            (f"prefect.flow-run.{state}" for state in ("Pending", "Running", "Scheduled", "Cancelled", "Crashed")),
            3600,
            RUNS,
            after=("prefect.flow-run.Late",),
            related=(OURS,),
        ),
    ),
}
"""Alerts on Prefect's own events, by the names that they are forwarded under."""
VARIABLE, BLOCK = "paraclip_alerts_", "paraclip-alerts-"
"""Prefixes of the Prefect variables that record what is forwarded, and of the blocks with the addresses."""
MISSING, DOWN = "regenerate.missing", "pool.down"
EVERY = (*EVENTS, *ALERTS, DOWN, MISSING)
"""Every event that can be forwarded."""
RUN = "(event.resource.name or 'regenerate')"
BODY = (
    f'{{"event": {{{{ EVENT | tojson }}}}, "run": {{{{ {RUN} | tojson }}}}, '
    '"text": {{ (TEXT) | tojson }}, "facts": {{ (event.payload or {}) | tojson }}}'
)
SUBJECT = f"{{{{ EVENT }}}}: {{{{ {RUN} }}}}"
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
KINDS = {"http": "webhook", "https": "webhook", "mailto": "e-mail", "mailtos": "e-mail"}
"""Kind of an address by its scheme; any other scheme is a kind of its own."""


def name_of(kind: str, event: str = "", run: str = "") -> str:
    """The name of the automation that serves one kind of address.

    With `event`, one of :data:`EVERY`, it forwards only that; with `run`, it watches only that nightly run.
    """
    return f"{PREFIX}{event or 'alerts'}{f' of {run}' if run else ''} by {kind}"


def pass_on(url: str, events: Sequence[str] = ()) -> None:
    """Create or update the automations that forward events of runs to `url`.

    A variable of the server records what is forwarded, so that a later deploy can add pools and nightly runs.
    """
    if unknown := sorted(set(events) - {*EVERY}):
        raise ConfigError(f"{', '.join(unknown)}: no such event; there are {', '.join(EVERY)}")
    kind = kind_of(url)
    block = _save_block(kind, url)
    wanted = [event for event in EVERY if not events or event in events]
    cast(Any, Variable).set(f"{VARIABLE}{_slug(kind)}", {"kind": kind, "events": wanted}, overwrite=True)
    with get_client(sync_client=True) as client:
        existing = Existing.read(client)
    _put(kind, wanted, block, existing)


def follow_deployments() -> None:
    """Update the existing alerts for the pools and nightly runs that are deployed now.

    Alerts whose block was deleted on the server end, with their automations.
    """
    blocks: dict[str, UUID] = {}
    with get_client(sync_client=True) as client:
        records = {record.name: cast(Any, record.value) for record in client.read_variables()}
        records = {name: value for name, value in records.items() if name.startswith(VARIABLE)}
        if not records:
            return
        existing = Existing.read(client)
        for name, record in records.items():
            slug = _block_type(record["kind"]).get_block_type_slug()
            try:
                blocks[name] = client.read_block_document_by_name(f"{BLOCK}{_slug(record['kind'])}", slug).id
            except ObjectNotFound:
                client.delete_variable_by_name(name)
                _delete_others(record["kind"], ())
    for name, block in blocks.items():
        kind, events = records[name]["kind"], records[name]["events"]
        _put(kind, [event for event in EVERY if event in events], block, existing)


def _put(kind: str, events: Sequence[str], block: UUID, existing: Existing) -> None:
    """Create or update the automations of one kind of address, and delete those that are no longer wanted."""
    own = [f"paraclip.{event}" for event in EVENTS if event in events]
    wanted: dict[str, tuple[str, Alert]] = {}
    if own:
        trigger = trigger_of(own, 0, {"prefect.resource.id": "paraclip.run.*"})
        wanted[name_of(kind)] = "event.event", Alert("event.payload.text", trigger)
    for event, run, alert in _of_server(events, existing):
        wanted[name_of(kind, event, run)] = f"'paraclip.{event}'", alert
    _delete_others(kind, wanted)
    for name, (event, alert) in wanted.items():
        action = _action(kind, block, event, alert.text)
        put_automation(Automation(name=name, trigger=alert.trigger, actions=[action]))


def _delete_others(kind: str, wanted: Collection[str]) -> None:
    """Delete the automations of one kind of address that are not among these names."""
    with get_client(sync_client=True) as client:
        for old in client.read_automations():
            if old.name.startswith(PREFIX) and old.name.endswith(f" by {kind}") and old.name not in wanted:
                client.delete_automation(old.id)


def _of_server(events: Sequence[str], existing: Existing) -> Iterator[tuple[str, str, Alert]]:
    """The wanted alerts on Prefect's own events: event, configuration (empty: all of them) and alert."""
    deployments = existing.deployments.values()
    for event, alert in ALERTS.items():
        if event in events:
            yield event, "", alert
    if DOWN in events and (pools := sorted({str(deployment.work_pool_name) for deployment in deployments})):
        yield DOWN, "", _pool_down(pools)
    for path, deployment in existing.deployments.items():
        scheduled = path.startswith("regenerate/") and any(schedule.active for schedule in deployment.schedules)
        if MISSING in events and scheduled:
            yield MISSING, deployment.name, _missing(deployment.name)


def _pool_down(pools: Sequence[str]) -> Alert:
    text = "event.resource.name ~ ' has had no worker for five minutes; its runs wait'"
    signs = "prefect.work-pool.ready", "prefect.work-pool.paused"
    match = {"prefect.resource.name": list(pools)}
    return Alert(text, trigger_of(signs, 300, match, after=("prefect.work-pool.not-ready",)))


def _missing(run: str) -> Alert:
    # The next wait starts with the end of this one. Without `for_each` the first starts now.
    ended = ("prefect.flow-run.Completed",)
    deployment = {"prefect.resource.role": "deployment", "prefect.resource.name": run}
    flow = {"prefect.resource.role": "flow", "prefect.resource.name": "regenerate"}
    text = f"'no run of regenerate/' ~ {json.dumps(run, ensure_ascii=False)} ~ ' has completed for 30 hours'"
    return Alert(text, trigger_of(ended, 30 * 3600, RUNS, ended, (OURS, flow, deployment), for_each=()))


def kind_of(url: str) -> str:
    """The kind of an address: `webhook`, `Slack`, `e-mail`, or its scheme."""
    parts = urlsplit(url)
    return "Slack" if parts.hostname in SLACK else KINDS.get(parts.scheme, parts.scheme)


def _save_block(kind: str, url: str) -> UUID:
    """Save the address in a block, which encrypts it; returns the id of the block's document."""
    # Prefect's Slack block passes its address to Apprise unchanged, so it reaches every service that Apprise knows.
    if kind not in ("webhook", "Slack") and not Apprise().add(url):
        raise ConfigError(
            f"{urlsplit(url).scheme}://… is not an address for alerts; expected one of those in docs/nightly.md"
        )
    webhook = {"headers": {"Content-Type": "application/json"}} if kind == "webhook" else {}
    block = _block_type(kind)(url=url, **webhook)
    return block.save(f"{BLOCK}{_slug(kind)}", overwrite=True)


def _block_type(kind: str) -> Any:
    return Webhook if kind == "webhook" else SlackWebhook


def _slug(kind: str) -> str:
    return kind.lower().replace("-", "")


def _action(kind: str, block: UUID, event: str, text: str) -> Any:
    """The action that sends an event there; `event` and `text` are Jinja expressions."""
    if kind == "webhook":
        return CallWebhook(block_document_id=block, payload=BODY.replace("EVENT", event).replace("TEXT", text))
    subject = SUBJECT.replace("EVENT", event)
    return SendNotification(block_document_id=block, subject=subject, body=f"{{{{ {text} }}}}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m paraclip.flows.alerts URL [EVENT …]")
    try:
        pass_on(sys.argv[1], sys.argv[2:])
        print(f"passed on by {kind_of(sys.argv[1])}: {', '.join(sys.argv[2:] or EVERY)}")  # noqa: T201 (a command)
    except ConfigError as problem:
        sys.exit(str(problem))
