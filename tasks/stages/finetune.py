"""The stage that repairs the text tower with paraphrases."""

from __future__ import annotations

from typing import Any

from paraclip_core.clip.reference import place_free_name
from paraclip_core.config import FinetuneOptions, Settings, meaning
from tasks.models import EMBEDDED, base_inputs, base_sources
from tasks.stage import Stage, StageContext

__all__ = ["FINETUNE", "told_options"]


def told_options(options: FinetuneOptions) -> dict[str, Any]:
    """What fingerprint and model card tell of the options."""
    # Without them both are what they were before there were such options.
    unused = {"image_gate": options.image_gate is None, "validations": not options.validations}
    return {name: value for name, value in meaning(options).items() if not unused.get(name, False)}


def _inputs(settings: Settings) -> tuple[str, ...]:
    return ("ingest", "paraphrase_2", "features", *base_inputs(settings))


def _options(settings: Settings) -> dict[str, Any]:
    base = settings.model.base
    # What a local model holds is in the sources; where it lies does not count.
    return {
        "finetune": told_options(settings.finetune),
        "base": base if base == EMBEDDED else place_free_name(base),
    }


def _body(ctx: StageContext) -> dict[str, Any]:
    # Here, because torch takes seconds to import and planning a run does not need it.
    from tasks.training.finetune import run

    return run(ctx)


FINETUNE = Stage(name="finetune", version=5, inputs=_inputs, options=_options, body=_body, sources=base_sources)
