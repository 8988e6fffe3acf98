"""The nightly run: new captions in, a challenger out, production moved only if the gate says so, and the way back."""

from __future__ import annotations

import logging
import os
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.alerts import emit
from flows.pipeline import run_stages
from flows.work import DEFAULTS, run_name, run_of
from paraclip_core.config import Settings
from paraclip_core.settings import at_environment_root
from storage.roots import open_store
from tasks.channels import check_channel, decide
from tasks.history import rollback as move_back
from tasks.publish import artifact_key, mark_decision, publish_markdown, publish_table
from tasks.status import shown_progress

__all__ = ["regenerate", "rollback"]

log = logging.getLogger(__name__)


@flow(name="regenerate", flow_run_name=run_name)
def regenerate(
    channel: str = "production",
    config: str = "",
    overrides: tuple[str, ...] = (),
    settings: Settings = DEFAULTS,
) -> State[dict[str, Any]]:
    """Make a challenger from the captions as they are now, and let it take over if it is good enough.

    Only new or changed captions are paraphrased: every other answer is in the generation cache. Where nothing changed
    at all, every stage is found finished and the channel stays as it is. The challenger must be better than its base
    and no worse than the model that the channel serves, on the same benchmarks.

    Args:
        channel: the channel that serves the production model; not the run's own, which follows every run.
        config: YAML file in place of `settings`: a path on the worker, or a URL.
        overrides: single options over either, `finetune.epochs=3` each.
        settings: every option.

    Raises:
        ConfigError: the channel is a run's own, or the run has the name of a promoted channel.
        ParaclipError: what a stage raised.
    """
    run = run_of(config, overrides, settings)
    check_channel(run.settings.name, channel, run.store)
    result = run_stages(run)
    with shown_progress("evaluate champion") as progress:
        decision = decide(run, channel, result, progress)
    name = run.settings.name
    log.info("%s: %s", channel, decision["reason"])
    publish_markdown(artifact_key(name, "promotion"), f"**{channel}**: {decision['reason']}\n", "Promotion")
    if decision["against_champion"]:
        text = f"{channel}: challenger against champion"
        publish_table(artifact_key(name, "champion"), decision["against_champion"], text)
    text = f"{channel}: {decision['reason']}"
    event = "channel.moved" if decision["moved"] else "channel.held"
    emit(event, name, text, channel=channel, before=decision["before"], after=decision["after"])
    mark_decision("moved" if decision["moved"] else "held")
    return Completed(message=text, data={"decision": decision, **result.as_json()})


@flow(name="rollback", flow_run_name="rollback-{channel}")
def rollback(channel: str = "production", to: str | None = None, root: str | None = None) -> dict[str, Any]:
    """Move a channel back to the model before the one that it serves; nothing is computed.

    Args:
        channel: the channel.
        to: start of the fingerprint of the model to serve, in place of the one before.
        root: folder or URL of the artifacts; PARACLIP_ROOT if not given.

    Raises:
        ArtifactError: there is no such channel or model, or the model's artifact is gone; the channel stays as it is.
    """
    store = open_store(root or at_environment_root(Settings(), os.environ).run.root)
    decision = move_back(store, channel, to)
    log.info("%s: %s", channel, decision["reason"])
    publish_markdown(artifact_key(channel, "rollback"), f"**{channel}**: {decision['reason']}\n", "Rollback")
    if decision["moved"]:
        text = f"{channel}: {decision['reason']}"
        emit("channel.rolled_back", channel, text, channel=channel, before=decision["before"], after=decision["after"])
    return decision
