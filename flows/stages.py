"""One flow per stage, each deployable on its own and safe to run again: a finished stage is found, not redone."""

from __future__ import annotations

from typing import Any

from prefect import Flow, flow

from paraclip.flows.form import FormSettings, Overrides
from paraclip.flows.work import DEFAULTS, carry_alone, run_name, run_of
from paraclip.tasks.run.dag import STAGES
from paraclip.tasks.run.run import Stage


def _stage_flow(stage: Stage) -> Flow[..., dict[str, Any]]:
    def run(config: str = "", overrides: Overrides = (), settings: FormSettings = DEFAULTS) -> dict[str, Any]:
        return carry_alone(stage.name, run_of(config, overrides, settings))

    run.__name__ = stage.name
    return flow(name=stage.name, description=stage.about, flow_run_name=run_name)(run)


STAGE_FLOWS = {name: _stage_flow(stage) for name, stage in STAGES.items()}
"""Every stage's flow by the stage's name."""

# Deployments name them `paraclip.flows.stages.<stage>`.
globals().update(STAGE_FLOWS)
