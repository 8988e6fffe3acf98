"""The nightly run: new captions in, a challenger out, and production moved only if the gate says so."""

from __future__ import annotations

import logging
import os
from typing import Any

from prefect import flow

from flows.pipeline import run_stages
from paraclip_core.config import Settings
from paraclip_core.settings import at_environment_root
from storage.artifacts import ArtifactStore
from tasks.promotion import check_channel, decide
from tasks.publish import artifact_key, publish_markdown

__all__ = ["regenerate"]

log = logging.getLogger(__name__)


@flow(name="regenerate", flow_run_name="regenerate-{settings.name}")
def regenerate(settings: Settings, channel: str = "production") -> dict[str, Any]:
    """Make a challenger from the captions as they are now, and let it take over if it is better.

    Only new or changed captions are paraphrased: every other answer is in the generation cache. Where nothing changed
    at all, every stage is found finished and the channel stays as it is.

    Args:
        settings: the run's settings.
        channel: the channel that serves the production model; not the run's own, which follows every run.

    Raises:
        ConfigError: the channel is the run's own.
        ParaclipError: what a stage raised.
    """
    settings = at_environment_root(settings, os.environ)
    store = ArtifactStore(settings.run.root)
    check_channel(settings.name, channel, store)
    result = run_stages(settings)
    decision = decide(store, channel, result)
    log.info("%s: %s", channel, decision["reason"])
    publish_markdown(artifact_key(settings.name, "promotion"), f"**{channel}**: {decision['reason']}\n", "Promotion")
    return {"decision": decision, **result.as_json()}
