"""The stages that train a text encoder; their bodies are in `paraclip.tasks.training.bodies`, which imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import BUILT_IN, base_held_out, base_inputs, base_sources, candidates_of, of_control
from paraclip.tasks.run.run import Run, Stage, StageContext
from paraclip_core.clip.reference import place_free_name
from paraclip_core.config import Settings
from paraclip_core.options import meaning
from paraclip_core.training.options import RecipeOptions


def _finetune_inputs(settings: Settings) -> tuple[str, ...]:
    return ("ingest", "paraphrase_2", "features", *base_inputs(settings))


def _options(settings: Settings) -> dict[str, Any]:
    base = settings.model.base
    # A local model's contents are in the sources; its location does not count.
    options = {k: v for k, v in meaning(settings.finetune).items() if k not in RecipeOptions.model_fields}
    tried = candidates_of(settings)
    # What is tried, whether it was set or is the default; losses that no recipe reads mean nothing.
    options["recipe"] = {candidate.recipe: candidate.losses for candidate in tried}
    options["learning_rate"] = sorted({candidate.options.learning_rate for candidate in tried})
    if (retention := corpus_of(settings).retention) is not None:
        options["retention"] = retention
    return {"finetune": options, "base": base if base == BUILT_IN else place_free_name(base)}


def _control(ctx: StageContext) -> dict[str, Any]:
    return FINETUNE.call(replace(ctx, run=Run(of_control(ctx.settings), ctx.store, ctx.run.stages)))


BUILT_IN_BASE = Stage(
    name="built_in_base",
    version=7,
    inputs=lambda settings: ("ingest", "features"),
    options=lambda run: {
        "built_in_base": meaning(run.settings.built_in_base),
        "precision": run.settings.finetune.precision,
        "held_out": base_held_out(run.settings),
        "model": meaning(run.settings.model),
    },
    body="paraclip.tasks.training.bodies:built_in_base",
    before="paraclip.tasks.stages.evaluate:check_benchmarks",
    applies=lambda settings: settings.model.base == BUILT_IN,
    about="Train the built-in base on image-caption pairs.",
    pool="gpu",
    units=("samples",),
    trains=True,
)
"""Trains a text encoder for the built-in base, for use without a pretrained CLIP."""

FINETUNE = Stage(
    name="finetune",
    version=13,
    inputs=_finetune_inputs,
    options=lambda run: _options(run.settings),
    body="paraclip.tasks.training.bodies:finetune",
    before="paraclip.tasks.stages.evaluate:check_benchmarks",
    sources=base_sources,
    about="Tune the text encoder on captions, paraphrases and image features.",
    pool="gpu",
    units=("samples",),
    trains=True,
)
"""Repairs the text encoder with paraphrases."""

CONTROL = Stage(
    name="control",
    version=FINETUNE.version + 1,
    inputs=_finetune_inputs,
    options=lambda run: _options(of_control(run.settings)),
    body=_control,
    before="paraclip.tasks.stages.evaluate:check_benchmarks",
    sources=base_sources,
    applies=lambda settings: settings.evaluate.control,
    about="Tune the text encoder in the same way on captions only.",
    pool="gpu",
    units=("samples",),
    trains=True,
)
"""Shows how much of a gain is not due to the paraphrases."""
