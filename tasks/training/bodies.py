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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from paraclip.storage.arrays import stored_arrays
from paraclip.storage.artifacts import Artifact
from paraclip.storage.features import FeatureStore
from paraclip.storage.files import storage_error, write_json
from paraclip.storage.parquet import PartWriter, frequent_values, iter_batches
from paraclip.tasks.models import base_held_out, base_reference, candidates_of
from paraclip.tasks.run.run import StageContext
from paraclip.tasks.stages.index import trust_note
from paraclip.tasks.training.data import (
    STORED,
    Images,
    RowCounts,
    TextTokens,
    caption_rows,
    enough,
    hold_out,
    paraphrase_rows,
    same_image_encoder,
    tokens_for,
    use_threads,
    validation_set,
)
from paraclip.tasks.training.log_data import DRAWN, enough_queries, log_rows, log_validation
from paraclip.tasks.training.towers import LOG, TOWER, tower, tower_weights
from paraclip_core.captions.tokens import CONTEXT_LENGTH
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
from paraclip_core.errors import ModelError
from paraclip_core.options import meaning
from paraclip_core.progress import Fact
from paraclip_core.tables import CAPTIONS
from paraclip_core.training.card import release_card
from paraclip_core.training.choice import Point, as_json, choose, copy_weights, interpolate
from paraclip_core.training.data import CAPTION, CAPTION_ID, IMAGE, TEXTS, RowBatch, TrainingRows, id_array, spool_rows
from paraclip_core.training.losses import Pair, named_pairs
from paraclip_core.training.options import RETENTION, Candidate, TrainingOptions
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
class Prepared:
    """What a stage trains, and on which data."""

    job: TrainingJob
    image_encoder: str
    """The image encoder's hash before training."""


@dataclass(frozen=True)
class Tuning(Prepared):
    """What fine-tuning trains, and what chooses among its candidates."""

    validation: ValidationSet


def _prepare_base(ctx: StageContext) -> Tuning:
    """The untrained built-in base and captions."""
    settings, captions = ctx.settings, ctx.inputs["ingest"].path / "captions"
    clip = built_in_clip(settings.model)
    clip.model.to(pick_device(settings.run.device))
    # First, because writing rows takes longer.
    encoder = same_image_encoder(clip, ctx.inputs["features"])
    with torch.no_grad():
        clip.model.get_parameter("logit_scale").fill_(math.log(settings.built_in_base.logit_scale))
    images, counts = Images(ctx.inputs["features"].path), RowCounts()
    held_out = hold_out(captions, images, base_held_out(settings))
    validation = validation_set(captions, held_out)
    rows = _spooled(ctx, (CAPTION,), caption_rows(captions, images, counts=counts, keep=held_out.trains), counts)
    chosen = {name: getattr(settings.built_in_base, name) for name in ("epochs", "batch_size", "learning_rate")}
    shared = {name: getattr(settings.finetune, name) for name in ("precision", "checkpoint_steps")}
    job = _job(
        ctx,
        clip,
        rows=enough(rows, "ingest", images.keys),
        features=images.matrix,
        image_keys=images.keys,
        pairs=(Pair(IMAGE, CAPTION),),
        options=TrainingOptions(**chosen, **shared),
        validate=lambda: measure(clip, validation).figures,
        keep_best=RECALL if held_out.ranks else None,
    )
    return Tuning(job, encoder, validation)


def _prepare_tuning(ctx: StageContext, candidate: Candidate) -> Tuning:
    """A base, and captions with their paraphrases, or queries of a log with theirs; nothing is validated before the
    choice. The job is that of one candidate."""
    settings, options = ctx.settings, ctx.settings.finetune
    clip = load_clip(base_reference(settings, ctx.inputs), pick_device(settings.run.device))
    # First, because writing rows takes longer.
    encoder = same_image_encoder(clip, ctx.inputs["features"])
    tokens, counts = tokens_for(clip, CONTEXT_LENGTH), RowCounts()
    paraphrases, features = ctx.inputs["paraphrase_2"].path / "paraphrases", ctx.inputs["features"].path
    if settings.data.index is None:
        images = Images(features)
        captions = ctx.inputs["ingest"].path / "captions"
        held_out = hold_out(captions, images, options.validation)
        stream = paraphrase_rows(paraphrases, images, counts, held_out.trains, tokens)
        rows = enough(_spooled(ctx, TEXTS, stream, counts, tokens), "paraphrase_2", images.keys)
        validation = validation_set(captions, held_out, paraphrases, tokens, rows.texts[CAPTION])
        data: dict[str, Any] = {"features": images.matrix, "image_keys": images.keys}
    else:
        store = FeatureStore(features)
        stream = log_rows(paraphrases, options.validation, counts, tokens)
        rows = enough_queries(_spooled(ctx, TEXTS, stream, counts, tokens))
        validation = log_validation(paraphrases, store, options.validation, tokens)
        data = {"features": store.view(), "image_keys": np.zeros(0, np.int64), "drawn_images": DRAWN}
    if options.texts == "captions":
        rows = rows.as_captions()
    weights = candidate.options.weights
    job = _job(ctx, clip, rows=rows, pairs=named_pairs(weights), options=candidate.options, **data)
    return Tuning(job, encoder, validation)


def _spooled(
    ctx: StageContext,
    kinds: tuple[str, ...],
    stream: Iterator[RowBatch],
    counts: RowCounts,
    tokens: TextTokens = STORED,
) -> TrainingRows:
    return spool_rows(ctx.work.scratch / "rows", kinds, stream, lambda: asdict(counts), tokens.dtype)


def _job(ctx: StageContext, clip: ClipModel, **job: Any) -> TrainingJob:
    freeze_image_encoder(clip)
    scratch, log_path = ctx.work.scratch / "checkpoints", ctx.work.out / "training_log.jsonl"
    return TrainingJob(clip=clip, scratch=scratch, log_path=log_path, **job)


def built_in_base(ctx: StageContext) -> dict[str, Any]:
    """Train the base and write ``release/`` and ``training_log.jsonl``."""
    use_threads(ctx.settings)
    base = _prepare_base(ctx)
    clip, rows = base.job.clip, base.job.rows
    precision = pick_precision(ctx.settings.finetune.precision, clip.device)
    name = f"{ctx.settings.name}-built_in_base-{ctx.work.out.parent.name[:12]}"
    run = TrackedRun(name, ctx.store.root / "logs/trackers", meaning(base.job.options))
    result = train(replace(base.job, trackers=Trackers(ctx.settings.run.trackers, run)), ctx.progress)
    _release(
        ctx,
        base,
        title="Built-in base",
        summary="A new text encoder trained on captions against a locked, pretrained image encoder (LiT).",
        base="built-in",
        options=meaning(ctx.settings.built_in_base) | {"precision": precision, "loss": LOSSES[clip.sigmoid]},
    )
    return {
        **rows.facts,
        "rows": len(rows),
        "validation_images": len(base.validation.gallery),
        "steps": result.steps,
        "batch_size": result.batch_size,
        "samples": result.steps * result.batch_size,
        "best_step": result.best_step,
        f"validation_{RECALL}": result.best,
        "samples_per_second": result.samples_per_second,
        "image_encoder_hash": base.image_encoder,
    }


def finetune(ctx: StageContext) -> dict[str, Any]:
    """Train every candidate, choose one and its α, and write ``release/``, ``training_log.jsonl`` and
    ``candidates.json``."""
    use_threads(ctx.settings)
    options = ctx.settings.finetune
    candidates = candidates_of(ctx.settings)
    tuning = _prepare_tuning(ctx, candidates[0])
    job, clip, rows = tuning.job, tuning.job.clip, tuning.job.rows
    weights, parameters = weights_hash(clip), trained_parameters(clip.model)
    base = copy_weights(parameters)
    validation = tuning.validation
    of_base = _measured(ctx, clip, validation, "base", {})
    towers, points = dict[str, Artifact](), list[Point]()
    # Garbage collection must leave the towers until the best one is copied.
    with ExitStack() as needed:
        for number, candidate in enumerate(candidates, 1):
            interpolate(parameters, base, base, 0.0)
            facts: dict[str, Fact] = {"candidate": f"{number} of {len(candidates)}, {candidate.name}"}
            towers[candidate.name] = tower(ctx, candidate, job, facts)
            needed.enter_context(ctx.store.mark_run({TOWER: towers[candidate.name].fingerprint}))
            tuned = tower_weights(towers[candidate.name], clip)
            for alpha in sorted({0.0, *options.alpha.grid}):
                interpolate(parameters, base, tuned, alpha)
                name = f"{towers[candidate.name].fingerprint}-{alpha:g}"
                measured = _measured(ctx, clip, validation, name, facts) if alpha else of_base
                points.append(Point(candidate, alpha, with_overlap(measured, of_base, validation)))
        choice = choose(points, options.alpha.grid, RETENTION if validation.of_log else None)
        chosen, tried = choice.chosen, choice.chosen.candidate
        if AO not in of_base.figures:
            log.warning("α = %g is chosen without paraphrases: %s", chosen.alpha, choice.rule)
        for note in choice.notes:
            log.warning("%s", note)
        write_json(ctx.work.out / "candidates.json", as_json(points, choice))
        best = towers[tried.name]
        shutil.copyfile(best.path / LOG, ctx.work.out / LOG)
        interpolate(parameters, base, tower_weights(best, clip), chosen.alpha)
    control, built_in = options.texts == "captions", ctx.inputs.get("built_in_base")
    after = _release(
        ctx,
        tuning,
        title="CLIP with a text encoder fine-tuned on captions only" if control else REPAIRED,
        summary=f"The text encoder was fine-tuned on {'captions only, as a control' if control else PARAPHRASED} and "
        f"interpolated with the base's at α = {chosen.alpha:g}. Of {len(candidates)} candidates {tried.name} was "
        f"chosen: {choice.rule}."
        + (
            ""
            if ctx.settings.data.index is None
            else f" In place of images of its own, {trust_note(ctx.inputs['features'])}."
        ),
        # By a name that does not depend on the artifacts' location.
        base=f"built_in_base/{built_in.fingerprint}" if built_in else place_free_name(ctx.settings.model.base),
        weights=weights,
        paraphraser=None if control else paraphraser_of(ctx.inputs["paraphrase_2"]),
        options=meaning(tried.options)
        | {"recipe": tried.recipe, "texts": options.texts, "validation": options.validation}
        | {"precision": pick_precision(options.precision, clip.device), "loss": LOSSES[clip.sigmoid]},
        figures=[{"alpha": each.alpha, **each.validation.figures} for each in points if each.candidate is tried],
    )
    trained = [each.manifest.metrics for each in towers.values()]
    return {
        **rows.facts,
        # Not among the options, because the base's location does not count; `paraclip search` reads it here.
        **({} if built_in else {"base": fixed_place(ctx.settings.model.base)}),
        "rows": len(rows),
        **({} if rows.starts is None else {"paraphrases": len(rows.image_rows)}),
        "validation_images": len(validation.gallery),
        "validation_pairs": len(validation.second) if validation.second is not None else 0,
        "candidates": len(candidates),
        "steps": trained[0]["steps"],
        "batch_size": trained[0]["batch_size"],
        "samples": sum(each["steps"] * each["batch_size"] for each in trained),
        "recipe": tried.recipe,
        "learning_rate": tried.options.learning_rate,
        "alpha": chosen.alpha,
        "validation": {str(each.alpha): dict(each.validation.figures) for each in (points[0], chosen)},
        "samples_per_second": best.manifest.metrics["samples_per_second"],
        "image_encoder_hash_before": tuning.image_encoder,
        "image_encoder_hash_after": after,
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


def _release(ctx: StageContext, trained: Prepared, **about: Any) -> str:
    """Write ``release/`` with its card; return the hash of the image encoder, which training must not have changed."""
    clip, before = trained.job.clip, trained.image_encoder
    after = image_encoder_hash(clip)
    if after != before:
        raise ModelError(
            f"training changed the image encoder ({before} before, {after} after), so image indexes of the base would "
            "be invalid; nothing is released. Please report this with the model's name"
        )
    captions = ctx.inputs["ingest"].path / "captions"
    licenses, sources = provenance(trained.job.rows, captions, ctx.work.scratch / "provenance")
    card = release_card(
        **about,
        image_encoder_hash=before,
        licenses=licenses,
        sources=sources,
        base_model=clip.hub_name,
        revision=clip.revision,
    )
    folder = ctx.work.out / "release"
    try:
        save_release(clip, folder, card)
    except OSError as error:
        raise storage_error(error, folder) from error
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
