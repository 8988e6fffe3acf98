"""The two stages that train a text tower; what they do is in `tasks.training`, which imports torch."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from paraclip_core.clip.reference import place_free_name
from paraclip_core.config import Settings, meaning
from tasks.models import EMBEDDED, base_inputs, base_sources
from tasks.stage import Stage, StageContext

if TYPE_CHECKING:
    from tasks.context import Run

__all__ = ["BOOTSTRAP", "FINETUNE"]


def _bootstrap_options(run: Run) -> dict[str, Any]:
    return {"bootstrap": meaning(run.settings.bootstrap), "model": meaning(run.settings.model)}


def _finetune_inputs(settings: Settings) -> tuple[str, ...]:
    return ("ingest", "paraphrase_2", "features", *base_inputs(settings))


def _finetune_options(run: Run) -> dict[str, Any]:
    base = run.settings.model.base
    # What a local model holds is in the sources; where it lies does not count.
    return {
        "finetune": meaning(run.settings.finetune),
        "base": base if base == EMBEDDED else place_free_name(base),
    }


def _train(module: str, ctx: StageContext) -> dict[str, Any]:
    # Imported in the stage's process: torch takes seconds, and planning a run does not need it.
    return import_module(f"tasks.training.{module}").run(ctx)


BOOTSTRAP = Stage(
    name="bootstrap",
    version=7,
    inputs=lambda settings: ("ingest", "features"),
    options=_bootstrap_options,
    body=partial(_train, "bootstrap"),
    applies=lambda settings: settings.model.base == EMBEDDED,
    about="Train the embedded base model on image-caption pairs.",
    pool="gpu",
    trains=True,
)
"""Trains a text tower for the embedded model, where no pretrained CLIP is at hand."""

FINETUNE = Stage(
    name="finetune",
    version=8,
    inputs=_finetune_inputs,
    options=_finetune_options,
    body=partial(_train, "finetune"),
    sources=base_sources,
    about="Tune the text tower on captions, paraphrases and image features.",
    pool="gpu",
    trains=True,
)
"""Repairs the text tower with paraphrases."""
