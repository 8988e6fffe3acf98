"""Body of the stage ``bootstrap``: a text tower for the embedded model, trained with the caption-image loss alone.

LiT (arXiv 2111.07991): the image tower is pretrained and locked, the text tower learns to read it. A small share of the
images is left out, and the weights of the epoch that finds them best are kept, because more epochs than needed make an
unseen image harder to find.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch

from paraclip.tasks.run.run import StageContext
from paraclip.tasks.training.data import (
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
from paraclip.tasks.training.processes import train_together
from paraclip.tasks.training.release import provenance_of, release
from paraclip_core.clip.embedded import embedded_clip
from paraclip_core.clip.model import ClipModel, freeze_image_tower, pick_device
from paraclip_core.config import meaning
from paraclip_core.training.alpha import RECALL, ValidationSet, measure
from paraclip_core.training.batches import IMAGE
from paraclip_core.training.card import ReleaseCard
from paraclip_core.training.data import RowBatch, TrainingRows, spool_rows
from paraclip_core.training.losses import Pair
from paraclip_core.training.trainer import TrainingJob


class Preparation:
    """What training needs. Each process that takes part makes it for itself, and only what it asks for."""

    def __init__(self, ctx: StageContext) -> None:
        """Look at nothing yet."""
        self.ctx, self.options = ctx, ctx.settings.bootstrap
        self.captions = ctx.inputs["ingest"].path / "captions"

    @cached_property
    def clip(self) -> ClipModel:
        """The untrained model."""
        clip = embedded_clip(self.ctx.settings.model)
        clip.model.to(pick_device(self.ctx.settings.run.device))
        freeze_image_tower(clip)
        with torch.no_grad():
            clip.model.get_parameter("logit_scale").fill_(math.log(self.options.logit_scale))
        return clip

    @cached_property
    def images(self) -> Images:
        """Images that have features."""
        return Images(self.ctx.inputs["features"].path)

    @cached_property
    def held_out(self) -> HeldOut:
        """Images that training leaves out."""
        return hold_out(self.captions, self.images, self.options.validation)

    @cached_property
    def validation(self) -> ValidationSet:
        """Captions of the held-out images."""
        return validation_set(self.captions, self.held_out)

    @cached_property
    def rows(self) -> TrainingRows:
        """Rows to train on."""
        counts = RowCounts()

        def stream() -> Iterator[RowBatch]:
            yield from caption_rows(self.captions, self.images, counts=counts, keep=self.held_out.trains)

        folder = self.ctx.work.scratch / "rows"
        return enough(spool_rows(folder, ("caption",), stream(), lambda: asdict(counts)), "ingest", self.images.keys)

    def job(self, validates: bool = True) -> TrainingJob:
        """The training run; one process `validates`."""
        return TrainingJob(
            clip=self.clip,
            rows=self.rows,
            features=self.images.matrix,
            image_keys=self.images.keys,
            pairs=(Pair(IMAGE, "caption"),),
            options=self.options,
            scratch=self.ctx.work.scratch / "checkpoints",
            log_path=self.ctx.work.out / "training_log.jsonl",
            validate=(lambda: measure(self.clip, self.validation)) if validates else None,
            keep_best=RECALL if self.held_out.ranks else None,
        )


def run(ctx: StageContext) -> dict[str, Any]:
    """Train the base and write ``release/`` and ``training_log.jsonl``."""
    use_threads(ctx.settings)
    made = Preparation(ctx)
    before = same_image_tower(made.clip, ctx.inputs["features"])
    result = train_together(ctx, "bootstrap", made.job())
    provenance = provenance_of(made.rows, made.captions, ctx.work.scratch / "provenance")
    card = ReleaseCard(
        title="Bootstrapped CLIP",
        summary="A new text tower trained on captions against a locked, pretrained image tower (LiT).",
        base="embedded",
        image_tower_hash=before,
        licences=provenance.licences,
        sources=provenance.sources,
        options=meaning(ctx.settings.bootstrap),
    )
    release(ctx.work.out / "release", made.clip, card)
    return {
        **made.rows.facts,
        "rows": len(made.rows),
        "validation_images": len(made.held_out.gallery),
        "steps": result.steps,
        "batch_size": result.batch_size,
        "best_step": result.best_step,
        f"validation_{RECALL}": result.best,
        "samples_per_second": result.samples_per_second,
        "image_tower_hash": before,
    }
