"""The nightly run: new captions in, a challenger out, production moved only if the gate says so, and the way back."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from prefect import flow, suspend_flow_run
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.runtime import deployment
from prefect.states import Completed

from paraclip.flows.form import DEFAULTS, FormSettings, Overrides
from paraclip.flows.pause import explain_when_ended
from paraclip.flows.pipeline import run_stages
from paraclip.flows.prefect_ui import PrefectUi, rolled_back
from paraclip.flows.stages import run_name, run_of
from paraclip.storage.roots import open_store
from paraclip.tasks.channels import check_channel
from paraclip.tasks.channels import rollback as move_back
from paraclip.tasks.promotion import decide
from paraclip.tasks.run.status import shown_progress
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.settings import at_environment_root, deployed_settings

log = logging.getLogger(__name__)

MOVE = ("channel", "before", "after")


@flow(name="regenerate", flow_run_name=run_name)
def regenerate(
    channel: str = "production", config: str = "", overrides: Overrides = (), settings: FormSettings = DEFAULTS
) -> State[dict[str, Any]]:
    """Make a challenger from the current captions, and promote it if it is good enough.

    Only new or changed captions are paraphrased: every other answer is in the answers cache. If nothing changed at
    all, every stage is found finished and the channel stays as it is. The challenger must be better than its base and,
    by a step, than the model that the channel serves, on the same benchmarks. With `run.promote=ask`, a person has the
    last word: the run is suspended until somebody resumes it.

    Args:
        channel: the channel that serves the production model; not the run's own, which follows every run.
        config: YAML file in place of `settings`: a path on the worker, or a URL.
        overrides: any options, which win over both: `finetune.epochs=3`; `paraclip config schema` lists them.
        settings: the options that are set most often.
    """
    run = run_of(deployed_settings(settings, config, overrides, os.environ))
    check_channel(run.settings.name, channel, run.store)
    asks = run.settings.run.promote == "ask"
    if asks and not deployment.id:
        raise ConfigError(
            "run.promote=ask needs a run of the deployment `regenerate`, because no other can wait for a person"
        )
    result = run_stages(run)
    with shown_progress("evaluate champion") as progress:
        decision = decide(run, channel, result, progress, approve=partial(_ask, run.settings.name) if asks else None)
    ui, outcome = PrefectUi(run.settings.name), "moved" if decision["moved"] else "held"
    text = _tell(f"channel.{outcome}", ui, decision, decision["reason"])
    ui.decision(outcome)
    return Completed(message=text, data={"decision": decision, **result.as_json()})


def _ask(name: str, decision: Mapping[str, Any]) -> None:
    """Return if somebody has resumed the run that proposes this move; suspend it otherwise.

    A resumed run starts from its first line, as a retried one does. If its captions have changed since, this is another
    move, and it asks again.
    """
    move = "-".join(str(decision[part]) for part in MOVE)
    try:
        suspend_flow_run(timeout=None, key=move)
    except Pause:
        reason = f"waits for Resume in the UI, and is then {decision['reason']}"
        question = _tell("channel.asks", PrefectUi(name), decision, reason)
        explain_when_ended(question)
        raise


def _tell(event: str, ui: PrefectUi, decision: Mapping[str, Any], reason: str) -> str:
    """Show a decision and its figures, and emit its event; returns its sentence."""
    channel = decision["channel"]
    log.info("%s: %s", channel, reason)
    ui.markdown("promotion", f"**{channel}**: {reason}\n", "Promotion")
    if decision["against_champion"]:
        ui.table("champion", decision["against_champion"], f"{channel}: challenger against champion")
    ui.event(event, f"{channel}: {reason}", **{part: decision[part] for part in MOVE})
    return f"{channel}: {reason}"


@flow(name="rollback", flow_run_name="rollback-{channel}")
def rollback(channel: str = "production", to: str | None = None, root: str | None = None) -> dict[str, Any]:
    """Move a channel back to the previous model; nothing is computed.

    Args:
        channel: the channel.
        to: start of the fingerprint of an earlier model, instead of the previous one.
        root: folder or URL of the artifacts; PARACLIP_ROOT if not given.
    """
    store = open_store(root or at_environment_root(Settings(), os.environ).run.root)
    decision = move_back(store, channel, to)
    log.info("%s: %s", channel, decision["reason"])
    ui = PrefectUi(channel)
    ui.markdown("rollback", f"**{channel}**: {decision['reason']}\n", "Rollback")
    if decision["moved"]:
        event, text, facts = rolled_back(decision)
        ui.event(event, text, **facts)
    return decision
