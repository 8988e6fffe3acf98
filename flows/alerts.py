"""What a run tells whoever does not watch it: automations that pass its events on to a webhook, Slack or a mailbox.

    python -m flows.alerts URL [EVENT …]

passes events of the runs of the server that PREFECT_API_URL names on, all of them or only those that are named
(`stage.failed`, `channel.held`, …). Calling it again changes the address and the events. `URL` is one of

* `https://…`: every event is posted as JSON with a `text`;
* `https://hooks.slack.com/services/…`: as a message of Slack;
* `mailto://USER:PASSWORD@HOST:PORT?from=…&to=…` (`mailtos` for TLS): as e-mail;
* an address of any other service in Apprise's form, which Prefect's notification blocks speak.

Any other automation of Prefect can be made over the same events: `paraclip.*`, with the resource `paraclip.run.<name>`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

from paraclip_core.errors import ConfigError
from tasks.publish import EVENTS, emit, emit_from_command, in_flow_run

__all__ = ["announce_rollback", "emit", "name_of", "pass_on"]

BODY = (
    '{"event": {{ event.event | tojson }}, "run": {{ event.resource.name | tojson }}, '
    '"text": {{ event.payload.text | tojson }}, "facts": {{ event.payload | tojson }}}'
)
SUBJECT = "{{ event.event }}: {{ event.resource.name }}"
TEXT = "{{ event.payload.text }}"
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
KINDS = {"http": "webhook", "https": "webhook", "mailto": "e-mail", "mailtos": "e-mail"}
"""Kind of an address by its scheme; others are kinds of their own."""


def name_of(url: str) -> str:
    """The name of the automation that serves addresses of this kind; there is one of each kind."""
    return f"paraclip: alerts by {_kind(url)}"


def pass_on(url: str, events: Sequence[str] = ()) -> None:
    """Make or change the automation that passes events of runs on to `url`.

    Raises:
        ConfigError: there is no such event, or Prefect can make nothing of the address.
    """
    from prefect.automations import Automation
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    from flows.setup import put_automation

    if unknown := sorted(set(events) - set(EVENTS)):
        raise ConfigError(f"{', '.join(unknown)}: no such event; there are {', '.join(EVENTS)}")
    trigger = EventTrigger(
        expect={f"paraclip.{event}" for event in events or EVENTS},
        match=ResourceSpecification({"prefect.resource.id": ["paraclip.run.*"]}),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    put_automation(Automation(name=name_of(url), trigger=trigger, actions=[_action(url)]))


def announce_rollback(decision: Mapping[str, Any]) -> None:
    """Emit the event of a channel that went back, from a flow run or from a command."""
    facts = {name: decision[name] for name in ("channel", "before", "after")}
    send = emit if in_flow_run() else emit_from_command
    send("channel.rolled_back", facts["channel"], f"{facts['channel']}: {decision['reason']}", **facts)


def _kind(url: str) -> str:
    parts = urlsplit(url)
    return "Slack" if parts.hostname in SLACK else KINDS.get(parts.scheme, parts.scheme)


def _action(url: str) -> Any:
    """What sends an event there. The address lies in a block, and so is encrypted."""
    from apprise import Apprise
    from prefect.blocks.notifications import SlackWebhook
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook, SendNotification

    kind = _kind(url)
    name = f"paraclip-alerts-{kind.lower().replace('-', '')}"
    if kind == "webhook":
        block = cast(Any, Webhook)(url=url, headers={"Content-Type": "application/json"})
        return CallWebhook(block_document_id=cast(UUID, block.save(name, overwrite=True)), payload=BODY)
    # Prefect hands this block's address to Apprise as it is, so it speaks to whatever Apprise does.
    if kind != "Slack" and not Apprise().add(url):
        raise ConfigError(
            f"{urlsplit(url).scheme}://… is no address to send alerts to; expected one as docs/deployment.md shows"
        )
    block = cast(Any, SlackWebhook)(url=url)
    return SendNotification(block_document_id=cast(UUID, block.save(name, overwrite=True)), subject=SUBJECT, body=TEXT)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m flows.alerts URL [EVENT …]")
    try:
        pass_on(sys.argv[1], sys.argv[2:])
    except ConfigError as problem:
        sys.exit(str(problem))
