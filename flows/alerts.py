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

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit
from uuid import UUID

from apprise import Apprise
from prefect.automations import Automation
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import EventTrigger

from paraclip.flows.local_stack import OURS, POOLS, RUNS
from paraclip.flows.setup import put_automation, trigger_of
from paraclip.tasks.publish import EVENTS
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
    "pool.down": Alert(
        "event.resource.name ~ ' has had no worker for five minutes; its runs wait'",
        trigger_of(
            ("prefect.work-pool.ready", "prefect.work-pool.paused"),
            300,
            {"prefect.resource.name": list(POOLS)},
            after=("prefect.work-pool.not-ready",),
        ),
    ),
    "regenerate.missing": Alert(
        "'no run of regenerate has completed for 30 hours'",
        trigger_of(
            ("prefect.flow-run.Completed",),
            30 * 3600,
            RUNS,
            # The next wait starts with the end of this one. Without `for_each` the first starts now.
            after=("prefect.flow-run.Completed",),
            related=(OURS, {"prefect.resource.role": "flow", "prefect.resource.name": "regenerate"}),
            for_each=(),
        ),
    ),
}
"""What of Prefect's own events is passed on, by the name that it gets."""
# Of what never came there is no event.
RUN = "(event.resource.name or 'regenerate')"
BODY = (
    f'{{"event": {{{{ EVENT | tojson }}}}, "run": {{{{ {RUN} | tojson }}}}, '
    '"text": {{ (TEXT) | tojson }}, "facts": {{ (event.payload or {}) | tojson }}}'
)
SUBJECT = f"{{{{ EVENT }}}}: {{{{ {RUN} }}}}"
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
KINDS = {"http": "webhook", "https": "webhook", "mailto": "e-mail", "mailtos": "e-mail"}
"""Kind of an address by its scheme; others are kinds of their own."""


def name_of(url: str, event: str = "") -> str:
    """The name of the automation that serves addresses of this kind, one of :data:`ALERTS` if it is for that alone."""
    return f"paraclip: {event or 'alerts'} by {_kind(url)}"


def pass_on(url: str, events: Sequence[str] = ()) -> None:
    """Make or change the automations that pass events of runs on to `url`."""
    if unknown := sorted(set(events) - {*EVENTS, *ALERTS}):
        raise ConfigError(f"{', '.join(unknown)}: no such event; there are {', '.join([*EVENTS, *ALERTS])}")
    wanted = set(events) or {*EVENTS, *ALERTS}
    own = [f"paraclip.{event}" for event in EVENTS if event in wanted]
    trigger = trigger_of(own, 0, {"prefect.resource.id": "paraclip.run.*"})
    block = _block(url)
    for event, alert in {"": Alert("event.payload.text", trigger), **ALERTS}.items():
        name = name_of(url, event)
        if event in wanted or (own and not event):
            action = _action(block, f"'paraclip.{event}'" if event else "event.event", alert.text)
            put_automation(Automation(name=name, trigger=alert.trigger, actions=[action]))
        else:
            with suppress(ValueError):
                cast(Any, Automation).read(name=name).delete()


def _kind(url: str) -> str:
    parts = urlsplit(url)
    return "Slack" if parts.hostname in SLACK else KINDS.get(parts.scheme, parts.scheme)


def _block(url: str) -> Any:
    """A saved block with the address, which lies there encrypted."""
    kind = _kind(url)
    # Prefect hands Slack's block's address to Apprise as it is, so it speaks to whatever Apprise does.
    if kind not in ("webhook", "Slack") and not Apprise().add(url):
        raise ConfigError(
            f"{urlsplit(url).scheme}://… is no address to send alerts to; expected one as docs/deployment.md shows"
        )
    webhook = {"headers": {"Content-Type": "application/json"}} if kind == "webhook" else {}
    block = cast(Any, Webhook if webhook else SlackWebhook)(url=url, **webhook)
    block.save(f"paraclip-alerts-{kind.lower().replace('-', '')}", overwrite=True)
    return block


def _action(block: Any, event: str, text: str) -> Any:
    """What sends an event there; its name and text are expressions of Jinja."""
    body, subject = (template.replace("EVENT", event).replace("TEXT", text) for template in (BODY, SUBJECT))
    document = cast(UUID, block._block_document_id)
    if isinstance(block, Webhook):
        return CallWebhook(block_document_id=document, payload=body)
    return SendNotification(block_document_id=document, subject=subject, body=f"{{{{ {text} }}}}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m paraclip.flows.alerts URL [EVENT …]")
    try:
        pass_on(sys.argv[1], sys.argv[2:])
        print(f"passed on by {_kind(sys.argv[1])}: {', '.join(sys.argv[2:] or [*EVENTS, *ALERTS])}")  # noqa: T201 (a command)
    except ConfigError as problem:
        sys.exit(str(problem))
