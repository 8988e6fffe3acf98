"""What a run tells whoever does not watch it: events, and an automation that posts them to a webhook.

    python -m flows.alerts https://hooks.slack.com/services/…

posts every event of the runs of the server that PREFECT_API_URL names, as JSON with a `text` that Slack shows as it is.
Calling it again changes the address. Any other automation of Prefect can be made over the same events: `paraclip.*`,
with the resource `paraclip.run.<name>`.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

from tasks.publish import artifact_key, in_flow_run

__all__ = ["AUTOMATION", "emit", "post_to"]

log = logging.getLogger(__name__)

AUTOMATION = "paraclip: tell a webhook"
BLOCK = "paraclip-alerts"
BODY = (
    '{"event": {{ event.event | tojson }}, "run": {{ event.resource.name | tojson }}, '
    '"text": {{ event.payload.text | tojson }}, "facts": {{ event.payload | tojson }}}'
)


def emit(event: str, run: str, text: str, **facts: Any) -> None:
    """Emit `paraclip.<event>` about a run, inside of a flow run; elsewhere nobody listens.

    Args:
        event: `stage.failed`, `run.promote`, `run.hold`, `channel.moved` or `channel.held`.
        run: the run's name.
        text: what happened, in one sentence.
        facts: plain values.
    """
    if not in_flow_run():
        return
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"paraclip.run.{artifact_key(run)}", "prefect.resource.name": run}
    try:
        emit_event(f"paraclip.{event}", resource, payload={"text": text, **facts})
    except Exception as error:
        # What cannot be told is not worth losing the work.
        log.warning("the event %s is not sent: %s", event, error)


def post_to(url: str) -> None:
    """Make or change the automation that posts every event to `url`."""
    from prefect.automations import Automation
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    webhook = cast(Any, Webhook)(url=url, headers={"Content-Type": "application/json"})
    block = webhook.save(BLOCK, overwrite=True)
    automation = Automation(
        name=AUTOMATION,
        trigger=EventTrigger(
            expect={"paraclip.*"},
            match=ResourceSpecification({"prefect.resource.id": ["paraclip.run.*"]}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[CallWebhook(block_document_id=block, payload=BODY)],
    )
    with suppress(ValueError):
        automation.id = cast(Any, Automation.read(name=AUTOMATION)).id
    (automation.update if automation.id else automation.create)()  # pyright: ignore[reportUnusedCoroutine]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m flows.alerts URL")
    post_to(sys.argv[1])
