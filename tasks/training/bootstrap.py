"""Body of the stage ``bootstrap``: a text tower for the embedded model, trained with the caption-image loss alone.

LiT (arXiv 2111.07991): the image tower is pretrained and locked, the text tower learns to read it. A small share of the
images is left out, and the weights of the epoch that finds them best are kept, because more epochs than needed make an
unseen image harder to find.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from paraclip_core.clip.models import embedded_clip, pick_device
from paraclip_core.config import meaning
from paraclip_core.training.losses import IMAGE, Pair
from paraclip_core.training.rows import TrainingRows, spool_rows
from paraclip_core.training.trainer import TrainingJob, train
from paraclip_core.training.validation import RECALL, measure
from tasks.stage import StageContext
from tasks.training.data import (
    HeldOut,
    Images,
    RowCounts,
    caption_rows,
    enough,
    hold_out,
    same_image_tower,
    use_threads,
    validation_set,
)
from tasks.training.release import release

__all__ = ["run"]


def run(ctx: StageContext) -> dict[str, Any]:
    """Train the base and write ``release/`` and ``training_log.jsonl``."""
    use_threads(ctx.settings)
    clip = embedded_clip(ctx.settings.model)
    clip.model.to(pick_device(ctx.settings.run.device))
    with torch.no_grad():
        clip.model.get_parameter("logit_scale").fill_(math.log(ctx.settings.bootstrap.logit_scale))
    before = same_image_tower(clip, ctx.inputs["features"])
    captions = ctx.inputs["ingest"].path / "captions"
    images = Images(ctx.inputs["features"].path)
    held_out = hold_out(captions, images, ctx.settings.bootstrap.validation)
    rows = _rows(ctx, captions, images, held_out)
    validation = validation_set(captions, held_out)
    job = TrainingJob(
        clip=clip,
        rows=rows,
        features=images.matrix,
        image_keys=images.keys,
        pairs=(Pair(IMAGE, "caption"),),
        options=ctx.settings.bootstrap,
        scratch=ctx.work.scratch / "checkpoints",
        log_path=ctx.work.out / "training_log.jsonl",
        validate=lambda: measure(clip, validation),
        keep_best=RECALL,
    )
    result = train(job, ctx.progress)
    release(
        ctx.work.out / "release",
        clip,
        before,
        title="Bootstrapped CLIP",
        summary="A new text tower trained on captions against a locked, pretrained image tower (LiT).",
        base="embedded",
        rows=captions,
        options=meaning(ctx.settings.bootstrap),
    )
    return {
        **rows.facts,
        "rows": len(rows),
        "validation_images": len(held_out.gallery),
        "steps": result.steps,
        "batch_size": result.batch_size,
        "best_step": result.best_step,
        f"validation_{RECALL}": result.best,
        "samples_per_second": result.samples_per_second,
        "image_tower_hash": before,
    }


def _rows(ctx: StageContext, captions: Path, images: Images, held_out: HeldOut) -> TrainingRows:
    counts = RowCounts()
    stream = caption_rows(captions, images, counts=counts, keep=held_out.trains)
    return enough(spool_rows(ctx.work.scratch / "rows", ("caption",), stream, lambda: asdict(counts)), "ingest")
