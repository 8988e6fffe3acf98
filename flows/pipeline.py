"""The whole DAG of one run, as one flow."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.children import run_child
from flows.logs import let_own_logs_through
from flows.work import DEFAULTS, publish_result, run_name, run_of, run_stage
from paraclip_core.config import Settings
from tasks.context import Run
from tasks.preflight import check_before_paying
from tasks.publish import artifact_key, publish_table
from tasks.registry import STAGES
from tasks.results import Result, check_run_name, record_result
from tasks.stages.paraphrase import STEPS

__all__ = ["pipeline", "run_stages"]

log = logging.getLogger(__name__)


@flow(name="pipeline", flow_run_name=run_name)
def pipeline(config: str = "", overrides: tuple[str, ...] = (), settings: Settings = DEFAULTS) -> State[Any]:
    """Run every stage in order and return what came out.

    A retry runs this function again from the top. Finished stages are found by their fingerprints in milliseconds,
    so it goes on with the one that failed.

    Args:
        config: YAML file in place of `settings`: a path on the worker, or a URL.
        overrides: single options over either, `finetune.epochs=3` each.
        settings: every option.
    """
    result = run_stages(run_of(config, overrides, settings))
    return Completed(message=result.decision, data=result.as_json())


def run_stages(run: Run) -> Result:
    """Run every stage in order, here or in its own deployment; for use inside a flow.

    Raises:
        ConfigError: the run's name is that of a promoted channel, or the package of one of its trackers is missing.
        InputError: its captions lack what a later stage needs; nothing was asked of a language model.
        ParaclipError: what a stage raised.
    """
    let_own_logs_through()
    settings = run.settings
    check_run_name(settings.name, run.store)
    rows: list[dict[str, Any]] = []
    # Now: captions that come while it runs are the next run's, and must not leave this one between two sets of them.
    nodes = run.nodes
    run.check_trackers()
    with run.store.mark_run({name: node.fingerprint for name, node in nodes.items()}):
        for name, node in nodes.items():
            if name in STEPS and STEPS[name] == 1:
                for notice in check_before_paying(run):
                    log.warning("%s", notice)
            # A stage of the user's own has no deployment.
            if settings.run.placement == "deployments" and node.stage is STAGES.get(name):
                row = run_child(node, run)
            else:
                row = run_stage(name, run)
            rows.append(row)
            publish_table(artifact_key(settings.name, "stages"), rows, f"Stages of {settings.name}")
        result = record_result(run, rows, run.artifacts())
    publish_result(settings, result)
    return result
