"""What a stage's flow or task does: run the stage, show its progress, say what came out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from flows.logs import let_own_logs_through
from paraclip_core.config import Settings
from storage.artifacts import ArtifactStore
from tasks.dag import resolve
from tasks.display import both, shown_progress
from tasks.publish import (
    artifact_key,
    as_text,
    in_flow_run,
    publish_markdown,
    publish_table,
    published_progress,
    report_note,
)
from tasks.results import Result, comparison_rows, stage_row, why
from tasks.run import run_stage
from tasks.worst import worst_pairs

__all__ = ["carry_stage", "publish_result"]

log = logging.getLogger(__name__)


def carry_stage(name: str, settings: Settings) -> dict[str, Any]:
    """Run one stage and return its row of the stage table.

    Raises:
        ParaclipError: what the stage raised.
    """
    let_own_logs_through()
    store = ArtifactStore(settings.run.root)
    started = time.monotonic()
    node = resolve(settings, store).get(name)
    cached = node is not None and store.find(name, node.fingerprint) is not None
    with shown_progress(name) as progress:
        seen = published_progress(artifact_key(settings.name, name, "progress"), f"Progress of {name}")
        artifact = run_stage(name, settings, both(progress, seen))
    row = stage_row(artifact, cached, time.monotonic() - started)
    log.info("%s: %s in %.1f s, %s", name, row["state"], row["seconds"], artifact.path)
    return row


def publish_result(settings: Settings, result: Result) -> None:
    """Show the comparison, the worst pairs and the way to the report in the UI."""
    if not in_flow_run():
        return
    if result.summary:
        rows = comparison_rows(result.summary)
        text = f"Verdict: {result.verdict} ({why(result.summary)})"
        publish_table(artifact_key(settings.name, "comparison"), rows, text)
    for row in result.stages:
        if row["stage"] == "evaluate" and (pairs := worst_pairs(Path(row["path"]))):
            rows = [as_text(pair) for pair in pairs]
            publish_table(artifact_key(settings.name, "worst-pairs"), rows, "Pairs whose two rankings agree least")
    if result.report and result.summary_path:
        note = report_note(result.report, result.summary_path)
        publish_markdown(artifact_key(settings.name, "report"), note, f"Report of {settings.name}")
