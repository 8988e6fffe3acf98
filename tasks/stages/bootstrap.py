"""The stage that trains a text tower for the embedded model, where no pretrained CLIP is at hand."""

from __future__ import annotations

from typing import Any

from paraclip_core.config import Settings, meaning
from tasks.stage import Stage, StageContext

__all__ = ["BOOTSTRAP"]


def _options(settings: Settings) -> dict[str, Any]:
    return {"bootstrap": meaning(settings.bootstrap), "model": meaning(settings.model)}


def _body(ctx: StageContext) -> dict[str, Any]:
    # Here, because torch takes seconds to import and planning a run does not need it.
    from tasks.training.bootstrap import run

    return run(ctx)


BOOTSTRAP = Stage(
    name="bootstrap", version=7, inputs=lambda settings: ("ingest", "features"), options=_options, body=_body
)
