"""Bodies of the training stages: what is trained on what, and the release that comes of it.

``bootstrap`` trains a text tower for the embedded model with the caption-image loss alone (LiT, arXiv 2111.07991): the
image tower is pretrained and locked, the text tower learns to read it. The weights of the epoch that finds held-out
images best are kept, because more epochs than needed make an unseen image harder to find. ``finetune`` and ``control``
tune the text tower of a base on captions and paraphrases, or on captions alone.
"""

from __future__ import annotations

import logging
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from paraclip.storage.artifacts import Artifact
from paraclip.storage.duckdb_file import frequent_values
from paraclip.storage.files import storage_error, write_json
from paraclip.storage.parquet import PartWriter, iter_batches
from paraclip.tasks.models import base_reference
from paraclip.tasks.run.run import StageContext
from paraclip.tasks.training.data import (
    STORED,
    HeldOut,
    Images,
    RowCounts,
    TextTokens,
    caption_rows,
    enough,
    hold_out,
    paraphrase_rows,
    same_image_tower,
    tokens_for,
    use_threads,
    validation_set,
)
from paraclip.tasks.training.processes import train_together
from paraclip_core.captions.tokens import CONTEXT_LENGTH
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import embedded_clip, load_clip
from paraclip_core.clip.model import (
    ClipModel,
    freeze_image_tower,
    image_tower_hash,
    pick_device,
    trained_parameters,
    weights_hash,
)
from paraclip_core.clip.reference import fixed_place, place_free_name
from paraclip_core.config import FinetuneOptions, meaning
from paraclip_core.errors import ModelError
from paraclip_core.tables import CAPTIONS
from paraclip_core.training.alpha import (
    AO,
    RECALL,
    ValidationSet,
    choose_alpha,
    copy_weights,
    interpolate,
    measure,
    sweep,
)
from paraclip_core.training.card import release_card
from paraclip_core.training.data import CAPTION, CAPTION_ID, IMAGE, TEXTS, RowBatch, TrainingRows, id_array, spool_rows
from paraclip_core.training.losses import Pair, named_pairs
from paraclip_core.training.trainer import TrainingJob

log = logging.getLogger(__name__)

BASE_HELD_OUT = 0.1
"""Share of the training images that the bootstrapped base does not see. Fine-tuning chooses α on images among them."""
LICENCE, SOURCE = "licence", "source"
COUNTED = pa.schema([CAPTIONS.field(LICENCE), CAPTIONS.field(SOURCE)])
REPAIRED = "CLIP with a text tower repaired by paraphrases"
PARAPHRASED = "captions and their paraphrases (ParaCLIP, arXiv 2402.15120)"


class Preparation(ABC):
    """What training needs. Each process that takes part makes it for itself, and only what it asks for."""

    def __init__(self, ctx: StageContext) -> None:
        self.ctx, self.settings, self.options = ctx, ctx.settings, ctx.settings.finetune
        self.captions = ctx.inputs["ingest"].path / "captions"

    @cached_property
    @abstractmethod
    def clip(self) -> ClipModel:
        """The model before training, its image tower frozen."""

    @cached_property
    @abstractmethod
    def held_out(self) -> HeldOut:
        """Images that training leaves out."""

    @cached_property
    @abstractmethod
    def rows(self) -> TrainingRows:
        """Rows to train on."""

    @abstractmethod
    def job(self, validates: bool = True) -> TrainingJob:
        """The training run; one process `validates`."""

    @cached_property
    def images(self) -> Images:
        """Images that have features."""
        return Images(self.ctx.inputs["features"].path)

    def _spooled(
        self, stage: str, kinds: tuple[str, ...], stream: Callable[[RowCounts], Iterator[RowBatch]], tokens: TextTokens
    ) -> TrainingRows:
        counts, folder = RowCounts(), self.ctx.work.scratch / "rows"
        rows = spool_rows(folder, kinds, stream(counts), lambda: asdict(counts), tokens.dtype)
        return enough(rows, stage, self.images.keys)

    def _job(self, **more: Any) -> TrainingJob:
        return TrainingJob(
            clip=self.clip,
            features=self.images.matrix,
            image_keys=self.images.keys,
            scratch=self.ctx.work.scratch / "checkpoints",
            log_path=self.ctx.work.out / "training_log.jsonl",
            **more,
        )


class BasePreparation(Preparation):
    """For training the embedded base."""

    @cached_property
    def clip(self) -> ClipModel:
        """The untrained model."""
        clip = embedded_clip(self.settings.model)
        clip.model.to(pick_device(self.settings.run.device))
        freeze_image_tower(clip)
        with torch.no_grad():
            clip.model.get_parameter("logit_scale").fill_(math.log(self.settings.bootstrap.logit_scale))
        return clip

    @cached_property
    def held_out(self) -> HeldOut:
        """Images that tell the best epoch."""
        return hold_out(self.captions, self.images, BASE_HELD_OUT)

    @cached_property
    def validation(self) -> ValidationSet:
        """Captions of the held-out images."""
        return validation_set(self.captions, self.held_out)

    @cached_property
    def rows(self) -> TrainingRows:
        """Captions."""

        def stream(counts: RowCounts) -> Iterator[RowBatch]:
            return caption_rows(self.captions, self.images, counts=counts, keep=self.held_out.trains)

        return self._spooled("ingest", (CAPTION,), stream, STORED)

    def job(self, validates: bool = True) -> TrainingJob:
        """The training run; one process `validates`."""
        chosen = {name: getattr(self.settings.bootstrap, name) for name in ("epochs", "batch_size", "learning_rate")}
        shared = {name: getattr(self.options, name) for name in ("precision", "checkpoint_steps")}
        return self._job(
            rows=self.rows,
            pairs=(Pair(IMAGE, CAPTION),),
            options=FinetuneOptions(**chosen, **shared),
            validate=(lambda: measure(self.clip, self.validation)) if validates else None,
            keep_best=RECALL if self.held_out.ranks else None,
        )


class FinetunePreparation(Preparation):
    """For tuning a base."""

    def __init__(self, ctx: StageContext) -> None:
        super().__init__(ctx)
        self.paraphrases = ctx.inputs["paraphrase_2"].path / "paraphrases"

    @cached_property
    def clip(self) -> ClipModel:
        """The base."""
        clip = load_clip(base_reference(self.settings, self.ctx.inputs), pick_device(self.settings.run.device))
        freeze_image_tower(clip)
        return clip

    @cached_property
    def held_out(self) -> HeldOut:
        """Images that α is chosen on."""
        # A base that was trained here knows its own training images, and beats any tuned tower on them.
        unseen = BASE_HELD_OUT if "bootstrap" in self.ctx.inputs else 1.0
        return hold_out(self.captions, self.images, self.options.validation, unseen)

    @cached_property
    def tokens(self) -> TextTokens:
        """How the base gets its tokens."""
        return tokens_for(self.clip, CONTEXT_LENGTH)

    @cached_property
    def validation(self) -> ValidationSet:
        """Captions and pairs of the held-out images."""
        return validation_set(self.captions, self.held_out, self.paraphrases, self.tokens)

    @cached_property
    def rows(self) -> TrainingRows:
        """Captions with their paraphrases."""

        def stream(counts: RowCounts) -> Iterator[RowBatch]:
            return paraphrase_rows(self.paraphrases, self.images, counts, self.held_out.trains, self.tokens)

        return self._spooled("paraphrase_2", TEXTS, stream, self.tokens)

    def job(self, validates: bool = True) -> TrainingJob:
        """The training run; nothing is validated before α is chosen."""
        rows = self.rows.as_captions() if self.options.texts == "captions" else self.rows
        return self._job(rows=rows, pairs=named_pairs(self.options.weights), options=self.options)


PREPARATIONS: Mapping[str, type[Preparation]] = {"bootstrap": BasePreparation, "finetune": FinetunePreparation}


def bootstrap(ctx: StageContext) -> dict[str, Any]:
    """Train the base and write ``release/`` and ``training_log.jsonl``."""
    use_threads(ctx.settings)
    base = BasePreparation(ctx)
    before = same_image_tower(base.clip, ctx.inputs["features"])
    result = train_together(ctx, "bootstrap", base.job())
    _release(
        base,
        before,
        title="Bootstrapped CLIP",
        summary="A new text tower trained on captions against a locked, pretrained image tower (LiT).",
        base="embedded",
        options=meaning(ctx.settings.bootstrap) | {"precision": ctx.settings.finetune.precision},
    )
    return {
        **base.rows.facts,
        "rows": len(base.rows),
        "validation_images": len(base.held_out.gallery),
        "steps": result.steps,
        "batch_size": result.batch_size,
        "best_step": result.best_step,
        f"validation_{RECALL}": result.best,
        "samples_per_second": result.samples_per_second,
        "image_tower_hash": before,
    }


def finetune(ctx: StageContext) -> dict[str, Any]:
    """Fine-tune, choose α, and write ``release/``, ``training_log.jsonl`` and ``alpha_sweep.json``."""
    use_threads(ctx.settings)
    tuning, options = FinetunePreparation(ctx), ctx.settings.finetune
    clip = tuning.clip
    before, weights = same_image_tower(clip, ctx.inputs["features"]), weights_hash(clip)
    parameters = trained_parameters(clip.model)
    base = copy_weights(parameters)
    result = train_together(ctx, "finetune", tuning.job())
    tuned, validation = copy_weights(parameters), tuning.validation
    points = sweep(parameters, base, tuned, options.alpha.grid, lambda: measure(clip, validation))
    choice = choose_alpha(points, options.alpha)
    if AO not in points[0]:
        log.warning("α = %g is chosen without paraphrases: %s", choice["chosen"], choice["rule"])
    write_json(ctx.work.out / "alpha_sweep.json", choice)
    interpolate(parameters, base, tuned, choice["chosen"])
    control, bootstrapped = options.texts == "captions", ctx.inputs.get("bootstrap")
    after = _release(
        tuning,
        before,
        title="CLIP with a text tower fine-tuned on captions alone" if control else REPAIRED,
        summary=f"The text tower was fine-tuned on {'captions alone, as a control' if control else PARAPHRASED} and "
        f"interpolated with the base's at α = {choice['chosen']:g}: {choice['rule']}.",
        # By a name that does not depend on where the artifacts lie.
        base=f"bootstrap/{bootstrapped.fingerprint}" if bootstrapped else place_free_name(ctx.settings.model.base),
        weights=weights,
        paraphraser=None if control else paraphraser_of(ctx.inputs["paraphrase_2"]),
        options=meaning(options),
        figures=points,
    )
    return {
        **tuning.rows.facts,
        # Not among the options, because it does not count where the base lies; `paraclip search` looks there.
        **({} if bootstrapped else {"base": fixed_place(ctx.settings.model.base)}),
        "rows": len(tuning.rows),
        **({} if tuning.rows.starts is None else {"rewrites": len(tuning.rows.image_rows)}),
        "validation_images": len(validation.gallery),
        "validation_pairs": len(validation.pair_targets) if validation.pair_targets is not None else 0,
        "steps": result.steps,
        "batch_size": result.batch_size,
        "alpha": choice["chosen"],
        "validation": {str(point["alpha"]): point for point in choice["alphas"]},
        "samples_per_second": result.samples_per_second,
        "image_tower_hash_before": before,
        "image_tower_hash_after": after,
    }


def _release(trained: Preparation, before: str, **about: Any) -> str:
    """Write ``release/`` with its card; the hash of the image tower, which must be the one `before` training still."""
    clip, ctx = trained.clip, trained.ctx
    after = image_tower_hash(clip)
    if after != before:
        raise ModelError(
            f"training changed the image tower ({before} before, {after} after), so image indexes of the base would be "
            "invalid; nothing is released. Please report this with the model's name"
        )
    licences, sources = provenance(trained.rows, trained.captions, ctx.work.scratch / "provenance")
    card = release_card(
        **about,
        image_tower_hash=before,
        licences=licences,
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
    """Captions that were trained on by licence and by source, the most frequent by name.

    Args:
        rows: what is trained on; rows that do not know their caption ids count as `unknown`.
        captions: folder of the ingested captions, where each caption id is there once.
        scratch: folder for what is counted; it is made anew.
    """
    if rows.ids is None:
        return {"unknown": len(rows)}, {"unknown": len(rows)}
    shutil.rmtree(scratch, ignore_errors=True)
    writer, trained = PartWriter(scratch, COUNTED), np.sort(_keys(rows.ids))
    for batch in iter_batches(captions, (CAPTION_ID, LICENCE, SOURCE)):
        keys = _keys(id_array(batch[CAPTION_ID]))
        mask = trained[np.minimum(np.searchsorted(trained, keys), len(trained) - 1)] == keys
        writer.write(batch.filter(pa.array(mask)).select(COUNTED.names).cast(COUNTED))
    writer.close()
    return frequent_values(scratch, LICENCE), frequent_values(scratch, SOURCE)


def _keys(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Half of each id, which is a hash: enough to tell the captions of one table apart."""
    return np.ascontiguousarray(ids[:, :8]).view("<u8")[:, 0]


def paraphraser_of(paraphrases: Artifact) -> str | None:
    """Engine and model that wrote an artifact's paraphrases; None where its manifest does not say."""
    metrics = paraphrases.manifest.metrics
    parts = [f"{name} `{metrics[name]}`" for name in ("engine", "model") if metrics.get(name)]
    return ", ".join(parts) or None
