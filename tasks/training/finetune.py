"""Body of the stage ``finetune``: the text tower learns from paraphrases, the image tower stays as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from paraclip_core.clip.models import freeze_image_tower, load_clip, pick_device
from paraclip_core.config import meaning
from paraclip_core.errors import ModelError
from paraclip_core.training.alpha import choose_alpha, copy_weights, interpolate, sweep
from paraclip_core.training.losses import named_pairs
from paraclip_core.training.optimiser import trained_parameters
from paraclip_core.training.rows import TrainingRows, spool_rows
from paraclip_core.training.trainer import TrainingJob, train
from paraclip_core.training.validation import measure
from storage.atomic import write_json
from tasks.models import base_reference
from tasks.stage import StageContext
from tasks.training.data import (
    HeldOut,
    Images,
    RowCounts,
    enough,
    hold_out,
    paraphrase_rows,
    same_image_tower,
    use_threads,
    validation_set,
)
from tasks.training.release import release

__all__ = ["run"]

KINDS = ("caption", "paraphrase_1", "paraphrase_2")


def run(ctx: StageContext) -> dict[str, Any]:
    """Fine-tune, choose α, and write ``release/``, ``training_log.jsonl`` and ``alpha_sweep.json``."""
    settings, options = ctx.settings, ctx.settings.finetune
    use_threads(settings)
    clip = load_clip(base_reference(settings, ctx.inputs), pick_device(settings.run.device))
    if not clip.reads_clip_tokens:
        raise ModelError(
            f"{clip.reference} has a tokenizer of its own, but captions are stored as CLIP's tokens; "
            "choose a base with CLIP's tokenizer"
        )
    freeze_image_tower(clip)
    before = same_image_tower(clip, ctx.inputs["features"])
    captions, paraphrases = ctx.inputs["ingest"].path / "captions", ctx.inputs["paraphrase_2"].path / "paraphrases"
    images = Images(ctx.inputs["features"].path)
    # A base that was trained here knows its own training images, and beats any tuned tower on them.
    unseen = settings.bootstrap.validation if "bootstrap" in ctx.inputs else 1.0
    held_out = hold_out(captions, images, options.validation, unseen)
    rows = _rows(ctx, paraphrases, images, held_out)
    validation = validation_set(captions, held_out, paraphrases)
    parameters = trained_parameters(clip.model)
    base = copy_weights(parameters)
    job = TrainingJob(
        clip=clip,
        rows=rows.as_captions() if options.texts == "captions" else rows,
        features=images.matrix,
        image_keys=images.keys,
        pairs=named_pairs(options.weights),
        options=options,
        scratch=ctx.work.scratch / "checkpoints",
        log_path=ctx.work.out / "training_log.jsonl",
        mask_duplicates=options.mask_duplicates,
    )
    result = train(job, ctx.progress)
    tuned = copy_weights(parameters)
    chosen = choose_alpha(
        sweep(parameters, base, tuned, options.alpha.grid, lambda: measure(clip, validation)),
        options.alpha.max_recall_drop,
    )
    write_json(ctx.work.out / "alpha_sweep.json", chosen)
    interpolate(parameters, base, tuned, chosen["chosen"])
    after = release(
        ctx.work.out / "release",
        clip,
        before,
        title="CLIP with a text tower repaired by paraphrases",
        summary="The text tower was fine-tuned on captions and their LLM paraphrases (ParaCLIP, arXiv 2402.15120) and "
        f"interpolated with the base's at α = {chosen['chosen']:g}: {chosen['rule']}.",
        base=_base_name(ctx),
        rows=paraphrases,
        options=meaning(options),
        figures=chosen["alphas"],
    )
    return {
        **rows.facts,
        "rows": len(rows),
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


def _rows(ctx: StageContext, paraphrases: Path, images: Images, held_out: HeldOut) -> TrainingRows:
    counts = RowCounts()
    stream = paraphrase_rows(paraphrases, images, counts, held_out.trains)
    return enough(spool_rows(ctx.work.scratch / "rows", KINDS, stream, lambda: asdict(counts)), "paraphrase_2")


def _base_name(ctx: StageContext) -> str:
    """The base by a name that does not depend on where the artifacts lie."""
    made = ctx.inputs.get("bootstrap")
    return f"bootstrap/{made.fingerprint}" if made is not None else ctx.settings.model.base
