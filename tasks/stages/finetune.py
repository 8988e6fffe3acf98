"""The stage that repairs the text tower with paraphrases."""

from __future__ import annotations

from typing import Any

from paraclip_core.clip.reference import place_free_name
from paraclip_core.config import Settings, meaning
from tasks.models import EMBEDDED, base_inputs, base_sources
from tasks.stage import Stage, StageContext

__all__ = ["FINETUNE"]


def _inputs(settings: Settings) -> tuple[str, ...]:
    return ("ingest", "paraphrase_2", "features", *base_inputs(settings))


def _options(settings: Settings) -> dict[str, Any]:
    base = settings.model.base
    # What a local model holds is in the sources; where it lies does not count.
    return {
        "finetune": meaning(settings.finetune),
        "base": base if base == EMBEDDED else place_free_name(base),
    }


def _body(ctx: StageContext) -> dict[str, Any]:
    # Here, because torch takes seconds to import and planning a run does not need it.
    from tasks.training.finetune import run

    return run(ctx)


FINETUNE = Stage(name="finetune", version=8, inputs=_inputs, options=_options, body=_body, sources=base_sources)
