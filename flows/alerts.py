"""What a run tells whoever does not watch it: automations that pass its events on to a webhook, Slack or a mailbox.

    python -m paraclip.flows.alerts URL [EVENT …]

passes events of the runs of the server that PREFECT_API_URL names on, all of them or only those that are named
(`run.failed`, `channel.held`, …). Calling it again changes the address and the events. `URL` is one of

* `https://…`: every event is posted as JSON with a `text`;
* `https://hooks.slack.com/services/…`: as a message of Slack;
* `mailto://USER:PASSWORD@HOST:PORT?from=…&to=…` (`mailtos` for TLS): as e-mail;
* an address of any other service in Apprise's form, which Prefect's notification blocks speak.

What a run cannot tell itself, since it crashed or never began, the server does: :data:`ALERTS`. Any other
automation of Prefect can be made over the same events: `paraclip.*`, with the resource `paraclip.run.<name>`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
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
from prefect.variables import Variable

from paraclip.flows.automations import PREFIX, put_automation, trigger_of
from paraclip.flows.deployments import Existing
from paraclip.flows.names import OURS, RUNS
from paraclip.tasks.prefect_ui import EVENTS
from paraclip_core.errors import ConfigError


class Alert(NamedTuple):
    """What Prefect's server sees of runs and pools: an event that comes, or one that does not come in time."""

    text: str
    """The sentence, as an expression of Jinja over the event."""
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
"""What of Prefect's own events is passed on, by the name that it gets."""
VARIABLE = "paraclip_alerts_"
"""How the names of Prefect's variables begin that say what is passed on."""
MISSING, DOWN = "regenerate.missing", "pool.down"
EVERY = (*EVENTS, *ALERTS, DOWN, MISSING)
"""All that can be passed on."""
RUN = "(event.resource.name or 'regenerate')"
BODY = (
    f'{{"event": {{{{ EVENT | tojson }}}}, "run": {{{{ {RUN} | tojson }}}}, '
    '"text": {{ (TEXT) | tojson }}, "facts": {{ (event.payload or {}) | tojson }}}'
)
SUBJECT = f"{{{{ EVENT }}}}: {{{{ {RUN} }}}}"
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
KINDS = {"http": "webhook", "https": "webhook", "mailto": "e-mail", "mailtos": "e-mail"}
"""Kind of an address by its scheme; others are kinds of their own."""


def name_of(kind: str, event: str = "", run: str = "") -> str:
    """The name of the automation that serves addresses of a kind; one of :data:`EVERY` if it is for that alone, and a
    configuration if it is for its nightly run."""
    return f"{PREFIX}{event or 'alerts'}{f' of {run}' if run else ''} by {kind}"


def pass_on(url: str, events: Sequence[str] = ()) -> None:
    """Create or change the automations that pass events of runs on to `url`.

    What is passed on is kept as the variable `paraclip_alerts_KIND`, so that a later deploy brings pools and nightly
    runs up to date.
    """
    if unknown := sorted(set(events) - {*EVERY}):
        raise ConfigError(f"{', '.join(unknown)}: no such event; there are {', '.join(EVERY)}")
    kind, block = kind_of(url), _save_block(url)
    wanted = [event for event in EVERY if not events or event in events]
    cast(Any, Variable).set(f"{VARIABLE}{_slug(kind)}", {"kind": kind, "events": wanted}, overwrite=True)
    with get_client(sync_client=True) as client:
        existing = Existing.read(client)
    _put(kind, wanted, block, existing)


def follow_deployments() -> None:
    """Let the alerts that were set up know the pools and nightly runs that are deployed now."""
    with get_client(sync_client=True) as client:
        wanted = [cast(Any, one.value) for one in client.read_variables() if one.name.startswith(VARIABLE)]
        if not wanted:
            return
        existing = Existing.read(client)
        slugs = {one["kind"]: _block_type(one["kind"]).get_block_type_slug() for one in wanted}
        blocks = {kind: client.read_block_document_by_name(_block_name(kind), slug).id for kind, slug in slugs.items()}
    for one in wanted:
        _put(one["kind"], [event for event in EVERY if event in one["events"]], blocks[one["kind"]], existing)


def _put(kind: str, events: Sequence[str], block: UUID, existing: Existing) -> None:
    """The automations of one kind of address, each with its trigger; those that nobody wants any more are deleted."""
    own = [f"paraclip.{event}" for event in EVENTS if event in events]
    wanted: dict[str, tuple[str, Alert]] = {}
    if own:
        trigger = trigger_of(own, 0, {"prefect.resource.id": "paraclip.run.*"})
        wanted[name_of(kind)] = "event.event", Alert("event.payload.text", trigger)
    for event, run, alert in _of_server(events, existing):
        wanted[name_of(kind, event, run)] = f"'paraclip.{event}'", alert
    with get_client(sync_client=True) as client:
        for old in client.read_automations():
            if old.name.startswith(PREFIX) and old.name.endswith(f" by {kind}") and old.name not in wanted:
                client.delete_automation(old.id)
    for name, (event, alert) in wanted.items():
        action = _action(kind, block, event, alert.text)
        put_automation(Automation(name=name, trigger=alert.trigger, actions=[action]))


def _of_server(events: Sequence[str], existing: Existing) -> Iterator[tuple[str, str, Alert]]:
    """What of Prefect's own events is wanted: the event, the configuration that it is about alone, and its alert."""
    for event, alert in ALERTS.items():
        if event in events:
            yield event, "", alert
    if DOWN in events and (pools := sorted({str(one.work_pool_name) for one in existing.deployments.values()})):
        yield DOWN, "", _pool_down(pools)
    for path, one in existing.deployments.items():
        if MISSING in events and path.startswith("regenerate/") and any(each.active for each in one.schedules):
            yield MISSING, one.name, _missing(one.name)


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


def _save_block(url: str) -> UUID:
    """Keep the address in a block, where it lies encrypted; gives the id of the block's document."""
    kind = kind_of(url)
    # Prefect hands Slack's block's address to Apprise as it is, so it speaks to whatever Apprise does.
    if kind not in ("webhook", "Slack") and not Apprise().add(url):
        raise ConfigError(
            f"{urlsplit(url).scheme}://… is no address to send alerts to; expected one as docs/deployment.md shows"
        )
    webhook = {"headers": {"Content-Type": "application/json"}} if kind == "webhook" else {}
    block = _block_type(kind)(url=url, **webhook)
    return block.save(_block_name(kind), overwrite=True)


def _block_type(kind: str) -> Any:
    return Webhook if kind == "webhook" else SlackWebhook


def _block_name(kind: str) -> str:
    return f"paraclip-alerts-{_slug(kind)}"


def _slug(kind: str) -> str:
    return kind.lower().replace("-", "")


def _action(kind: str, block: UUID, event: str, text: str) -> Any:
    """What sends an event there; its name and text are expressions of Jinja."""
    body, subject = (template.replace("EVENT", event).replace("TEXT", text) for template in (BODY, SUBJECT))
    if kind == "webhook":
        return CallWebhook(block_document_id=block, payload=body)
    return SendNotification(block_document_id=block, subject=subject, body=f"{{{{ {text} }}}}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m paraclip.flows.alerts URL [EVENT …]")
    try:
        pass_on(sys.argv[1], sys.argv[2:])
        print(f"passed on by {kind_of(sys.argv[1])}: {', '.join(sys.argv[2:] or EVERY)}")  # noqa: T201 (a command)
    except ConfigError as problem:
        sys.exit(str(problem))
