"""Bodies of the training stages: what is trained on which data, and the resulting release.

``built_in_base`` trains a text encoder for the built-in base with the caption-image loss alone (LiT, arXiv 2111.07991):
the image encoder is pretrained and locked, the text encoder learns to read it. The weights of the epoch that retrieves
held-out images best are kept, because too many epochs make unseen images harder to find. ``finetune`` and ``control``
tune the text encoder of a base on captions and paraphrases, or on captions only.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from paraclip.storage.arrays import stored_arrays
from paraclip.storage.artifacts import Artifact
from paraclip.storage.files import write_json
from paraclip.storage.parquet import PartWriter, frequent_values, iter_batches
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import base_held_out, base_reference, candidates_of
from paraclip.tasks.run.run import StageContext
from paraclip.tasks.training.candidates import LOG, Trained, candidate_draft, candidate_weights, train_candidate
from paraclip.tasks.training.data import (
    Images,
    RowCounts,
    TuningData,
    caption_rows,
    enough,
    hold_out,
    rows_folder,
    same_image_encoder,
    spooled,
    use_threads,
    validation_set,
)
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.encode import pick_precision
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import (
    ClipModel,
    freeze_image_encoder,
    image_encoder_hash,
    pick_device,
    trained_parameters,
    weights_hash,
)
from paraclip_core.clip.reference import LOSSES, fixed_place, place_free_name
from paraclip_core.config import Settings
from paraclip_core.errors import ModelError
from paraclip_core.options import meaning
from paraclip_core.progress import Fact
from paraclip_core.tables import CAPTIONS
from paraclip_core.training.card import release_card
from paraclip_core.training.choice import Choice, Point, as_json, choose, copy_weights, interpolate
from paraclip_core.training.data import CAPTION, CAPTION_ID, IMAGE, TrainingRows, id_array
from paraclip_core.training.losses import Pair
from paraclip_core.training.options import TrainingOptions
from paraclip_core.training.trackers import TrackedRun, Trackers
from paraclip_core.training.trainer import TrainingJob, train
from paraclip_core.training.validation import AO, RECALL, Validation, ValidationSet, measure, summed, with_overlap

log = logging.getLogger(__name__)

LICENSE, SOURCE = "license", "source"
FOUND = "found"
"""The array of a stored validation that has the first images."""
COUNTED = pa.schema([CAPTIONS.field(LICENSE), CAPTIONS.field(SOURCE)])
REPAIRED = "CLIP with a text encoder repaired by paraphrases"
PARAPHRASED = "captions and their paraphrases (ParaCLIP, arXiv 2402.15120)"


@dataclass(frozen=True)
class Base:
    """A model to train, whose image encoder is frozen."""

    clip: ClipModel
    image_encoder: str
    """The image encoder's hash before training."""


def _frozen(ctx: StageContext, clip: ClipModel) -> Base:
    # Before rows are written, because that takes longer.
    encoder = same_image_encoder(clip, ctx.inputs["features"])
    freeze_image_encoder(clip)
    return Base(clip, encoder)


def built_in_base(ctx: StageContext) -> dict[str, Any]:
    """Train the base and write ``release/`` and ``training_log.jsonl``."""
    use_threads(ctx.settings)
    settings, captions = ctx.settings, ctx.inputs["ingest"].path / "captions"
    clip = built_in_clip(settings.model)
    clip.model.to(pick_device(settings.run.device))
    base = _frozen(ctx, clip)
    with torch.no_grad():
        clip.model.get_parameter("logit_scale").fill_(math.log(settings.built_in_base.logit_scale))
    images, counts = Images(ctx.inputs["features"].path), RowCounts()
    held_out = hold_out(captions, images, base_held_out(settings))
    validation = validation_set(captions, held_out, clip)
    stream = caption_rows(captions, images, clip, counts, held_out.trains)
    rows = spooled(ctx, (CAPTION,), stream, counts, clip)
    options = _base_options(settings)
    run = TrackedRun(
        f"{settings.name}-built_in_base-{ctx.work.out.parent.name[:12]}",
        ctx.store.root / "logs/trackers",
        meaning(options),
    )
    job = TrainingJob(
        clip=clip,
        rows=rows,
        images=enough(rows, images.of_rows(rows_folder(ctx)), "ingest"),
        pairs=(Pair(IMAGE, CAPTION),),
        options=options,
        scratch=ctx.work.scratch / "checkpoints",
        log_path=ctx.work.out / LOG,
        validate=lambda: measure(clip, validation).figures,
        keep_best=RECALL if held_out.ranks else None,
        trackers=Trackers(settings.run.trackers, run),
    )
    result = train(job, ctx.progress)
    precision = pick_precision(settings.finetune.precision, clip.device)
    _release(
        ctx,
        base,
        rows,
        title="Built-in base",
        summary="A new text encoder trained on captions against a locked, pretrained image encoder (LiT).",
        base="built-in",
        options=meaning(settings.built_in_base) | {"precision": precision, "loss": LOSSES[clip.sigmoid]},
    )
    return {
        **rows.facts,
        "rows": len(rows),
        "validation_images": len(validation.gallery),
        "steps": result.steps,
        "batch_size": result.batch_size,
        "samples": result.steps * result.batch_size,
        "best_step": result.best_step,
        f"validation_{RECALL}": result.best,
        "samples_per_second": result.samples_per_second,
        "image_encoder_hash": base.image_encoder,
    }


def _base_options(settings: Settings) -> TrainingOptions:
    chosen = {name: getattr(settings.built_in_base, name) for name in ("epochs", "batch_size", "learning_rate")}
    shared = {name: getattr(settings.finetune, name) for name in ("precision", "checkpoint_steps")}
    return TrainingOptions(**chosen, **shared)


@dataclass(frozen=True)
class Tuning(Base):
    """A base to tune, and on what."""

    data: TuningData
    weights: str
    """Hash of all weights before training."""


def finetune(ctx: StageContext) -> dict[str, Any]:
    """Train every candidate, choose one and its α, and write ``release/``, ``training_log.jsonl`` and
    ``candidates.json``."""
    use_threads(ctx.settings)
    tuning = _load(ctx)
    trained, points = _candidates(ctx, tuning)
    choice = _choose(ctx, tuning, trained, points)
    return _released(ctx, tuning, trained, points, choice)


def _load(ctx: StageContext) -> Tuning:
    """The base, and captions with their paraphrases, or queries of a log with theirs."""
    clip = load_clip(base_reference(ctx.settings, ctx.inputs), pick_device(ctx.settings.run.device))
    base, corpus = _frozen(ctx, clip), corpus_of(ctx.settings)
    data: TuningData = corpus.call(corpus.data, ctx, clip)
    if ctx.settings.finetune.texts == "captions":
        data = replace(data, rows=data.rows.as_captions())
    return Tuning(clip, base.image_encoder, data, weights_hash(clip))


def _candidates(ctx: StageContext, tuning: Tuning) -> tuple[list[Trained], list[Point]]:
    """Find or train every candidate, and measure each at every α; the model has the base's weights afterwards."""
    clip, validation, candidates = tuning.clip, tuning.data.validation, candidates_of(ctx.settings)
    parameters = trained_parameters(clip.model)
    base, of_base = copy_weights(parameters), _measured(ctx, clip, validation, "base", {})
    trained, points = list[Trained](), list[Point]()
    for number, candidate in enumerate(candidates, 1):
        facts: dict[str, Fact] = {"candidate": f"{number} of {len(candidates)}, {candidate.name}"}
        draft = candidate_draft(ctx, candidate, tuning.weights)
        trained.append(train_candidate(ctx, candidate, draft, clip, tuning.data, partial(ctx.progress, **facts)))
        tuned = candidate_weights(trained[-1].artifact, clip)
        for alpha in sorted({0.0, *ctx.settings.finetune.alpha.grid}):
            interpolate(parameters, base, tuned, alpha)
            name = f"{draft.fingerprint}-{alpha:g}"
            measured = _measured(ctx, clip, validation, name, facts) if alpha else of_base
            points.append(Point(candidate, alpha, with_overlap(measured, of_base, validation)))
        interpolate(parameters, base, base, 0.0)
    return trained, points


def _choose(ctx: StageContext, tuning: Tuning, trained: Sequence[Trained], points: Sequence[Point]) -> Choice:
    """Choose a candidate and its α, give the model its weights, and write ``candidates.json`` and its training log."""
    choice = choose(points, ctx.settings.finetune.alpha.grid, corpus_of(ctx.settings).retention)
    if AO not in points[0].validation.figures:
        log.warning("α = %g is chosen without paraphrases: %s", choice.chosen.alpha, choice.rule)
    for note in choice.notes:
        log.warning("%s", note)
    write_json(ctx.work.out / "candidates.json", as_json(points, choice))
    best, parameters = _best(trained, choice).artifact, trained_parameters(tuning.clip.model)
    shutil.copyfile(best.path / LOG, ctx.work.out / LOG)
    tuned = candidate_weights(best, tuning.clip)
    interpolate(parameters, copy_weights(parameters), tuned, choice.chosen.alpha)
    return choice


def _best(trained: Sequence[Trained], choice: Choice) -> Trained:
    return next(row for row in trained if row.candidate is choice.chosen.candidate)


def _released(
    ctx: StageContext, tuning: Tuning, trained: Sequence[Trained], points: Sequence[Point], choice: Choice
) -> dict[str, Any]:
    """Write ``release/``; return the stage's metrics."""
    rows, validation = tuning.data.rows, tuning.data.validation
    chosen, tried, built_in = choice.chosen, choice.chosen.candidate, ctx.inputs.get("built_in_base")
    after = _release(ctx, tuning, rows, **_card_of(ctx, tuning, trained, points, choice))
    first = trained[0].metrics
    return {
        **rows.facts,
        # Not among the options, because the base's location does not count; `paraclip search` reads it here.
        **({} if built_in else {"base": fixed_place(ctx.settings.model.base)}),
        "rows": len(rows),
        **({} if rows.starts is None else {"paraphrases": rows.total}),
        "validation_images": len(validation.gallery),
        "validation_pairs": len(validation.second) if validation.second is not None else 0,
        "candidates": len(trained),
        "steps": first["steps"],
        "batch_size": first["batch_size"],
        "samples": sum(row.metrics["steps"] * row.metrics["batch_size"] for row in trained),
        "recipe": tried.recipe,
        "learning_rate": tried.options.learning_rate,
        "alpha": chosen.alpha,
        "validation": {str(point.alpha): dict(point.validation.figures) for point in (points[0], chosen)},
        "samples_per_second": _best(trained, choice).metrics["samples_per_second"],
        "image_encoder_hash_before": tuning.image_encoder,
        "image_encoder_hash_after": after,
    }


def _card_of(
    ctx: StageContext, tuning: Tuning, trained: Sequence[Trained], points: Sequence[Point], choice: Choice
) -> dict[str, Any]:
    options, tried, built_in = ctx.settings.finetune, choice.chosen.candidate, ctx.inputs.get("built_in_base")
    control, trust = options.texts == "captions", corpus_of(ctx.settings).trust(ctx.inputs["features"])
    precision, alpha = pick_precision(options.precision, tuning.clip.device), choice.chosen.alpha
    return {
        "title": "CLIP with a text encoder fine-tuned on captions only" if control else REPAIRED,
        "summary": f"The text encoder was fine-tuned on {'captions only, as a control' if control else PARAPHRASED} "
        f"and interpolated with the base's at α = {alpha:g}. Of {len(trained)} candidates {tried.name} was "
        f"chosen: {choice.rule}." + (f" In place of images of its own, {trust}." if trust else ""),
        # By a name that does not depend on the artifacts' location.
        "base": f"built_in_base/{built_in.fingerprint}" if built_in else place_free_name(ctx.settings.model.base),
        "weights": tuning.weights,
        "paraphraser": None if control else paraphraser_of(ctx.inputs["paraphrase_2"]),
        "options": meaning(tried.options)
        | {"recipe": tried.recipe, "texts": options.texts, "validation": options.validation}
        | {"precision": precision, "loss": LOSSES[tuning.clip.sigmoid]},
        "figures": [{"alpha": point.alpha, **point.validation.figures} for point in points if point.candidate is tried],
    }


def _measured(
    ctx: StageContext, clip: ClipModel, held_out: ValidationSet, name: str, facts: Mapping[str, Fact]
) -> Validation:
    """Measure the model, or read what was measured before the stage was stopped, under a name that says which weights
    it has."""

    def arrays() -> dict[str, NDArray[Any]]:
        ctx.progress(0, None, measuring="on held-out images", **facts)
        validation = measure(clip, held_out)
        return {**validation.parts, FOUND: validation.found}

    parts = stored_arrays(ctx.work.scratch / "measured" / f"{name}.npz", arrays)
    found = parts.pop(FOUND)
    return summed(parts, found)


def _release(ctx: StageContext, trained: Base, rows: TrainingRows, **about: Any) -> str:
    """Write ``release/`` with its card; return the hash of the image encoder, which training must not have changed."""
    clip, before = trained.clip, trained.image_encoder
    after = image_encoder_hash(clip)
    if after != before:
        raise ModelError(
            f"training changed the image encoder ({before} before, {after} after), so image indexes of the base would "
            "be invalid; nothing is released. Please report this with the model's name"
        )
    captions = ctx.inputs["ingest"].path / "captions"
    licenses, sources = provenance(rows, captions, ctx.work.scratch / "provenance")
    card = release_card(
        **about,
        image_encoder_hash=before,
        licenses=licenses,
        sources=sources,
        base_model=clip.hub_name,
        revision=clip.revision,
    )
    folder = ctx.work.out / "release"
    save_release(clip, folder, card)
    return after


def provenance(rows: TrainingRows, captions: Path, scratch: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Number of captions trained on, by license and by source, the most frequent by name.

    `captions` is the folder of the ingested ones, in which each caption id occurs once; `scratch` is created empty.
    """
    assert rows.ids is not None
    shutil.rmtree(scratch, ignore_errors=True)
    writer, trained = PartWriter(scratch, COUNTED), np.sort(_keys(rows.ids))
    for batch in iter_batches(captions, (CAPTION_ID, LICENSE, SOURCE)):
        keys = _keys(id_array(batch[CAPTION_ID]))
        mask = trained[np.minimum(np.searchsorted(trained, keys), len(trained) - 1)] == keys
        writer.write(batch.filter(pa.array(mask)).select(COUNTED.names).cast(COUNTED))
    writer.close()
    return frequent_values(scratch, LICENSE), frequent_values(scratch, SOURCE)


def _keys(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Half of each id, which is a hash: enough to distinguish the captions of one table."""
    return np.ascontiguousarray(ids[:, :8]).view("<u8")[:, 0]


def paraphraser_of(paraphrases: Artifact) -> str | None:
    """Engine and model that wrote an artifact's paraphrases; None if its manifest does not say."""
    metrics = paraphrases.manifest.metrics
    parts = [f"{name} `{metrics[name]}`" for name in ("engine", "model") if metrics.get(name)]
    return ", ".join(parts) or None
