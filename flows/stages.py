"""One flow per stage, each deployable on its own and safe to run again: a finished stage is found, not redone."""

from __future__ import annotations

import os
from typing import Any

from prefect import Flow, flow

from flows.work import carry_stage
from paraclip_core.config import Settings
from paraclip_core.settings import at_environment_root

__all__ = [
    "STAGE_FLOWS",
    "bootstrap",
    "evaluate",
    "features",
    "finetune",
    "ingest",
    "paraphrase_1",
    "paraphrase_2",
    "report",
    "scenes",
]


def _stage_flow(name: str, description: str) -> Flow[..., dict[str, Any]]:
    def run(settings: Settings) -> dict[str, Any]:
        return carry_stage(name, at_environment_root(settings, os.environ))

    run.__name__ = name
    return flow(name=name, description=description, flow_run_name=f"{name}-{{settings.name}}")(run)


scenes = _stage_flow("scenes", "Render the demo's images with captions and held-out rewordings.")
ingest = _stage_flow("ingest", "Read, clean, filter and tokenise captions from files of many formats.")
paraphrase_1 = _stage_flow("paraphrase_1", "Ask an LLM for each training caption in plain language.")
paraphrase_2 = _stage_flow("paraphrase_2", "Ask an LLM for each plain caption in other words.")
features = _stage_flow("features", "Run every image through the frozen image tower once.")
bootstrap = _stage_flow("bootstrap", "Train the embedded base model on image-caption pairs.")
finetune = _stage_flow("finetune", "Tune the text tower on captions, paraphrases and image features.")
evaluate = _stage_flow("evaluate", "Measure base and tuned model and decide between them.")
report = _stage_flow("report", "Write the page that shows a run.")

STAGE_FLOWS = {
    stage.name: stage
    for stage in (scenes, ingest, paraphrase_1, paraphrase_2, features, bootstrap, finetune, evaluate, report)
}
"""Every stage's flow by the stage's name."""
