"""Body of the stage ``finetune``: the text tower learns from paraphrases, the image tower stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from paraclip.storage.files import write_json
from paraclip.tasks.models import base_reference
from paraclip.tasks.run.run import StageContext
from paraclip.tasks.training.data import (
    HeldOut,
    Images,
    RowCounts,
    TextTokens,
    enough,
    hold_out,
    paraphrase_rows,
    same_image_tower,
    tokens_for,
    use_threads,
    validation_set,
)
from paraclip.tasks.training.processes import train_together
from paraclip.tasks.training.release import paraphraser_of, provenance_of, release
from paraclip_core.captions.tokens import CONTEXT_LENGTH
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, freeze_image_tower, pick_device, weights_hash
from paraclip_core.clip.reference import fixed_place, place_free_name
from paraclip_core.config import meaning
from paraclip_core.training.alpha import (
    AO,
    ValidationSet,
    choose_alpha,
    copy_weights,
    interpolate,
    measure,
    sweep,
)
from paraclip_core.training.card import ReleaseCard
from paraclip_core.training.data import RowBatch, TrainingRows, spool_rows
from paraclip_core.training.losses import named_pairs
from paraclip_core.training.optimizer import select_parameters, trained_parameters
from paraclip_core.training.trainer import TrainingJob

log = logging.getLogger(__name__)

KINDS = ("caption", "paraphrase_1", "paraphrase_2")
REPAIRED = "CLIP with a text tower repaired by paraphrases"
PARAPHRASED = "captions and their paraphrases (ParaCLIP, arXiv 2402.15120)"


class Preparation:
    """What training needs. Each process that takes part makes it for itself, and only what it asks for."""

    def __init__(self, ctx: StageContext) -> None:
        """Look at nothing yet."""
        self.ctx, self.options = ctx, ctx.settings.finetune
        self.captions = ctx.inputs["ingest"].path / "captions"
        self.paraphrases = ctx.inputs["paraphrase_2"].path / "paraphrases"

    @cached_property
    def clip(self) -> ClipModel:
        """The base, with gradients where it is trained."""
        settings = self.ctx.settings
        clip = load_clip(base_reference(settings, self.ctx.inputs), pick_device(settings.run.device))
        freeze_image_tower(clip)
        select_parameters(clip.model, self.options.train, self.options.logit_scale == "learn")
        return clip

    @cached_property
    def images(self) -> Images:
        """Images that have features."""
        return Images(self.ctx.inputs["features"].path)

    @cached_property
    def held_out(self) -> HeldOut:
        """Images that training leaves out."""
        # A base that was trained here knows its own training images, and beats any tuned tower on them.
        unseen = self.ctx.settings.bootstrap.validation if "bootstrap" in self.ctx.inputs else 1.0
        return hold_out(self.captions, self.images, self.options.validation, unseen)

    @cached_property
    def validation(self) -> ValidationSet:
        """Captions and pairs of the held-out images."""
        return validation_set(self.captions, self.held_out, self.paraphrases, self.tokens)

    @cached_property
    def tokens(self) -> TextTokens:
        """How the base gets its tokens."""
        return tokens_for(self.clip, CONTEXT_LENGTH)

    @cached_property
    def rows(self) -> TrainingRows:
        """Rows to train on."""
        counts = RowCounts()

        def stream() -> Iterator[RowBatch]:
            keep = self.held_out.trains
            yield from paraphrase_rows(self.paraphrases, self.images, counts, keep, self.tokens)

        folder = self.ctx.work.scratch / "rows"
        rows = spool_rows(folder, KINDS, stream(), lambda: asdict(counts), self.tokens.dtype)
        return enough(rows, "paraphrase_2", self.images.keys)

    def job(self, validates: bool = True) -> TrainingJob:
        """The training run; nothing is validated before α is chosen, whichever process `validates`."""
        options = self.options
        return TrainingJob(
            clip=self.clip,
            rows=self.rows.as_captions() if options.texts == "captions" else self.rows,
            features=self.images.matrix,
            image_keys=self.images.keys,
            pairs=named_pairs(options.weights),
            options=options,
            scratch=self.ctx.work.scratch / "checkpoints",
            log_path=self.ctx.work.out / "training_log.jsonl",
            distil=options.distil,
            ranks=options.ranks,
        )


def run(ctx: StageContext) -> dict[str, Any]:
    """Fine-tune, choose α, and write ``release/``, ``training_log.jsonl`` and ``alpha_sweep.json``."""
    use_threads(ctx.settings)
    made, options = Preparation(ctx), ctx.settings.finetune
    clip = made.clip
    before, weights = same_image_tower(clip, ctx.inputs["features"]), weights_hash(clip)
    parameters = trained_parameters(clip.model)
    base = copy_weights(parameters)
    result = train_together(ctx, "finetune", made.job())
    tuned = copy_weights(parameters)
    validation = made.validation
    chosen = choose_alpha(
        sweep(parameters, base, tuned, options.alpha.grid, lambda: measure(clip, validation)),
        options.alpha,
    )
    if AO not in chosen["alphas"][0]:
        log.warning("α = %g is chosen without paraphrases: %s", chosen["chosen"], chosen["rule"])
    write_json(ctx.work.out / "alpha_sweep.json", chosen)
    interpolate(parameters, base, tuned, chosen["chosen"])
    after = _release(made, chosen, before, weights)
    return {
        **made.rows.facts,
        # Not among the options, because it does not count where the base lies; `paraclip search` looks there.
        **({} if "bootstrap" in ctx.inputs else {"base": fixed_place(ctx.settings.model.base)}),
        "rows": len(made.rows),
        **({} if made.rows.starts is None else {"rewrites": len(made.rows.image_rows)}),
        "validation_images": len(validation.gallery),
        "validation_pairs": len(validation.pair_targets) if validation.pair_targets is not None else 0,
        "steps": result.steps,
        "batch_size": result.batch_size,
        "alpha": chosen["chosen"],
        "validation": {str(point["alpha"]): point for point in chosen["alphas"]},
        "samples_per_second": result.samples_per_second,
        "image_tower_hash_before": before,
        "image_tower_hash_after": after,
    }


def _release(made: Preparation, chosen: Mapping[str, Any], before: str, weights: str) -> str:
    """Write the release with its card; the hash of the image tower, which is `before` still."""
    ctx, control = made.ctx, made.options.texts == "captions"
    provenance = provenance_of(made.rows, made.captions, ctx.work.scratch / "provenance")
    card = ReleaseCard(
        title="CLIP with a text tower fine-tuned on captions alone" if control else REPAIRED,
        summary=f"The text tower was fine-tuned on {'captions alone, as a control' if control else PARAPHRASED} and "
        f"interpolated with the base's at α = {chosen['chosen']:g}: {chosen['rule']}.",
        base=_base_name(ctx),
        image_tower_hash=before,
        weights=weights,
        licences=provenance.licences,
        sources=provenance.sources,
        paraphraser=None if control else paraphraser_of(ctx.inputs["paraphrase_2"]),
        options=meaning(made.options),
        figures=chosen["alphas"],
    )
    return release(ctx.work.out / "release", made.clip, card)


def _base_name(ctx: StageContext) -> str:
    """The base by a name that does not depend on where the artifacts lie."""
    made = ctx.inputs.get("bootstrap")
    return f"bootstrap/{made.fingerprint}" if made is not None else place_free_name(ctx.settings.model.base)
