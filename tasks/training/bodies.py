"""Bodies of the training stages: what is trained on what, and the release that comes of it.

``bootstrap`` trains a text tower for the embedded model with the caption-image loss alone (LiT, arXiv 2111.07991): the
image tower is pretrained and locked, the text tower learns to read it. The weights of the epoch that finds held-out
images best are kept, because more epochs than needed make an unseen image harder to find. ``finetune`` and ``control``
tune the text tower of a base on captions and paraphrases, or on captions alone.

Where ``run.processes`` says so, several processes of this machine train. They are started by torch's elastic launcher,
which is what torchrun is made of: ``python -m paraclip.tasks.training.bodies REQUEST`` with RANK, WORLD_SIZE and the
rest in the environment. The first one leaves the trained weights in the scratch folder, where the stage takes them up.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from paraclip.storage.artifacts import Artifact, ArtifactStore, WorkFolder
from paraclip.storage.files import convert_disk_errors, storage_error, write_json
from paraclip.storage.parquet import PartWriter, frequent_values, iter_batches
from paraclip.tasks.models import base_reference
from paraclip.tasks.run.run import Run, StageContext, settings_of
from paraclip.tasks.run.status import StatusFile, polling, read_failure, relay_from
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
from paraclip_core.captions.tokens import CONTEXT_LENGTH
from paraclip_core.clip.encode import pick_precision
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
from paraclip_core.clip.reference import LOSSES, fixed_place, place_free_name
from paraclip_core.config import FinetuneOptions, meaning
from paraclip_core.errors import ConfigError, ModelError, ParaclipError, TrainingError
from paraclip_core.lifetime import TempDir, die_with
from paraclip_core.tables import CAPTIONS
from paraclip_core.tensor_file import write_tensors
from paraclip_core.training.alpha import (
    AO,
    RECALL,
    choose_alpha,
    copy_weights,
    interpolate,
    measure,
    sweep,
)
from paraclip_core.training.card import release_card
from paraclip_core.training.data import CAPTION, CAPTION_ID, IMAGE, TEXTS, RowBatch, TrainingRows, id_array, spool_rows
from paraclip_core.training.losses import Pair, named_pairs
from paraclip_core.training.processes import bound_kernel_cache, joined
from paraclip_core.training.trackers import TrackedRun, Trackers
from paraclip_core.training.trainer import TrainingJob, TrainingResult, train

log = logging.getLogger(__name__)

BASE_HELD_OUT = 0.1
"""Share of the training images that the bootstrapped base does not see. Fine-tuning chooses α on images among them."""
LICENCE, SOURCE = "licence", "source"
COUNTED = pa.schema([CAPTIONS.field(LICENCE), CAPTIONS.field(SOURCE)])
REPAIRED = "CLIP with a text tower repaired by paraphrases"
PARAPHRASED = "captions and their paraphrases (ParaCLIP, arXiv 2402.15120)"

POLL_SECONDS = 0.2
WEIGHTS, RESULT = "weights.safetensors", "result.json"


@dataclass(frozen=True)
class Prepared:
    """What a stage trains on what; each process that takes part makes it for itself."""

    job: TrainingJob
    held_out: HeldOut
    """Images that training leaves out."""
    image_tower: str
    """Its hash before training."""
    tokens: TextTokens


def prepare_base(ctx: StageContext, validates: bool = True) -> Prepared:
    """The untrained embedded base and captions; one process `validates`."""
    settings, captions = ctx.settings, ctx.inputs["ingest"].path / "captions"
    clip = embedded_clip(settings.model)
    clip.model.to(pick_device(settings.run.device))
    with torch.no_grad():
        clip.model.get_parameter("logit_scale").fill_(math.log(settings.bootstrap.logit_scale))
    images, counts = Images(ctx.inputs["features"].path), RowCounts()
    held_out = hold_out(captions, images, BASE_HELD_OUT)
    validation = validation_set(captions, held_out) if validates else None
    chosen = {name: getattr(settings.bootstrap, name) for name in ("epochs", "batch_size", "learning_rate")}
    shared = {name: getattr(settings.finetune, name) for name in ("precision", "checkpoint_steps")}
    return _prepared(
        ctx,
        clip,
        held_out,
        counts,
        "ingest",
        caption_rows(captions, images, counts=counts, keep=held_out.trains),
        (CAPTION,),
        pairs=(Pair(IMAGE, CAPTION),),
        options=FinetuneOptions(**chosen, **shared),
        validate=(lambda: measure(clip, validation)) if validation else None,
        keep_best=RECALL if held_out.ranks else None,
    )


def prepare_tuning(ctx: StageContext, validates: bool = True) -> Prepared:
    """A base and captions with their paraphrases; nothing is validated before α is chosen."""
    settings, options = ctx.settings, ctx.settings.finetune
    clip = load_clip(base_reference(settings, ctx.inputs), pick_device(settings.run.device))
    images, counts = Images(ctx.inputs["features"].path), RowCounts()
    # A base that was trained here knows its own training images, and beats any tuned tower on them.
    unseen = BASE_HELD_OUT if "bootstrap" in ctx.inputs else 1.0
    held_out = hold_out(ctx.inputs["ingest"].path / "captions", images, options.validation, unseen)
    tokens = tokens_for(clip, CONTEXT_LENGTH)
    paraphrases = ctx.inputs["paraphrase_2"].path / "paraphrases"
    stream = paraphrase_rows(paraphrases, images, counts, held_out.trains, tokens)
    prepared = _prepared(
        ctx, clip, held_out, counts, "paraphrase_2", stream, TEXTS, tokens,
        pairs=named_pairs(options.weights), options=options,
    )  # fmt: skip
    if options.texts != "captions":
        return prepared
    return replace(prepared, job=replace(prepared.job, rows=prepared.job.rows.as_captions()))


def _prepared(
    ctx: StageContext,
    clip: ClipModel,
    held_out: HeldOut,
    counts: RowCounts,
    stage: str,
    stream: Iterator[RowBatch],
    kinds: tuple[str, ...],
    tokens: TextTokens = STORED,
    **job: Any,
) -> Prepared:
    freeze_image_tower(clip)
    # First, because writing rows takes longer.
    tower, images = same_image_tower(clip, ctx.inputs["features"]), held_out.images
    rows = spool_rows(ctx.work.scratch / "rows", kinds, stream, lambda: asdict(counts), tokens.dtype)
    training = TrainingJob(
        clip=clip,
        rows=enough(rows, stage, images.keys),
        features=images.matrix,
        image_keys=images.keys,
        scratch=ctx.work.scratch / "checkpoints",
        log_path=ctx.work.out / "training_log.jsonl",
        **job,
    )
    return Prepared(training, held_out, tower, tokens)


PREPARE = {"bootstrap": prepare_base, "finetune": prepare_tuning}


def bootstrap(ctx: StageContext) -> dict[str, Any]:
    """Train the base and write ``release/`` and ``training_log.jsonl``."""
    use_threads(ctx.settings)
    base = prepare_base(ctx)
    clip, rows = base.job.clip, base.job.rows
    precision = pick_precision(ctx.settings.finetune.precision, clip.device)
    result = train_together(ctx, "bootstrap", base.job)
    _release(
        ctx,
        base,
        title="Bootstrapped CLIP",
        summary="A new text tower trained on captions against a locked, pretrained image tower (LiT).",
        base="embedded",
        options=meaning(ctx.settings.bootstrap) | {"precision": precision, "loss": LOSSES[clip.sigmoid]},
    )
    return {
        **rows.facts,
        "rows": len(rows),
        "validation_images": len(base.held_out.gallery),
        "steps": result.steps,
        "batch_size": result.batch_size,
        "best_step": result.best_step,
        f"validation_{RECALL}": result.best,
        "samples_per_second": result.samples_per_second,
        "image_tower_hash": base.image_tower,
    }


def finetune(ctx: StageContext) -> dict[str, Any]:
    """Fine-tune, choose α, and write ``release/``, ``training_log.jsonl`` and ``alpha_sweep.json``."""
    use_threads(ctx.settings)
    tuning, options = prepare_tuning(ctx), ctx.settings.finetune
    clip, rows = tuning.job.clip, tuning.job.rows
    weights, parameters = weights_hash(clip), trained_parameters(clip.model)
    base = copy_weights(parameters)
    result = train_together(ctx, "finetune", tuning.job)
    tuned = copy_weights(parameters)
    captions, paraphrases = ctx.inputs["ingest"].path / "captions", ctx.inputs["paraphrase_2"].path / "paraphrases"
    validation = validation_set(captions, tuning.held_out, paraphrases, tuning.tokens)
    points = sweep(parameters, base, tuned, options.alpha.grid, lambda: measure(clip, validation))
    choice = choose_alpha(points, options.alpha)
    if AO not in points[0]:
        log.warning("α = %g is chosen without paraphrases: %s", choice["chosen"], choice["rule"])
    write_json(ctx.work.out / "alpha_sweep.json", choice)
    interpolate(parameters, base, tuned, choice["chosen"])
    control, bootstrapped = options.texts == "captions", ctx.inputs.get("bootstrap")
    after = _release(
        ctx,
        tuning,
        title="CLIP with a text tower fine-tuned on captions alone" if control else REPAIRED,
        summary=f"The text tower was fine-tuned on {'captions alone, as a control' if control else PARAPHRASED} and "
        f"interpolated with the base's at α = {choice['chosen']:g}: {choice['rule']}.",
        # By a name that does not depend on where the artifacts lie.
        base=f"bootstrap/{bootstrapped.fingerprint}" if bootstrapped else place_free_name(ctx.settings.model.base),
        weights=weights,
        paraphraser=None if control else paraphraser_of(ctx.inputs["paraphrase_2"]),
        options=meaning(options)
        | {"precision": pick_precision(options.precision, clip.device), "loss": LOSSES[clip.sigmoid]},
        figures=points,
    )
    return {
        **rows.facts,
        # Not among the options, because it does not count where the base lies; `paraclip search` looks there.
        **({} if bootstrapped else {"base": fixed_place(ctx.settings.model.base)}),
        "rows": len(rows),
        **({} if rows.starts is None else {"rewrites": len(rows.image_rows)}),
        "validation_images": len(validation.gallery),
        "validation_pairs": len(validation.pair_targets) if validation.pair_targets is not None else 0,
        "steps": result.steps,
        "batch_size": result.batch_size,
        "alpha": choice["chosen"],
        "validation": {str(point["alpha"]): point for point in choice["alphas"]},
        "samples_per_second": result.samples_per_second,
        "image_tower_hash_before": tuning.image_tower,
        "image_tower_hash_after": after,
    }


def _release(ctx: StageContext, trained: Prepared, **about: Any) -> str:
    """Write ``release/`` with its card; the hash of the image tower, which must be the one before training still."""
    clip, before = trained.job.clip, trained.image_tower
    after = image_tower_hash(clip)
    if after != before:
        raise ModelError(
            f"training changed the image tower ({before} before, {after} after), so image indexes of the base would be "
            "invalid; nothing is released. Please report this with the model's name"
        )
    captions = ctx.inputs["ingest"].path / "captions"
    licences, sources = provenance(trained.job.rows, captions, ctx.work.scratch / "provenance")
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

    `captions` is the folder of the ingested ones, where each caption id is there once; `scratch` is made anew.
    """
    assert rows.ids is not None
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


def train_together(ctx: StageContext, stage: str, job: TrainingJob) -> TrainingResult:
    """Train a stage's job, in this process or in as many as the settings say, each of which makes its own job.

    The model of the `job` that was made here ends up with the trained weights; its rows are on disk already.
    """
    count = ctx.settings.run.processes
    if count == 1:
        return train(replace(job, trackers=_trackers(ctx, stage, job)), ctx.progress)
    if job.clip.device.type == "cuda" and torch.cuda.device_count() < count:
        raise ConfigError(
            f"run.processes is {count}, but {torch.cuda.device_count()} CUDA devices are here; lower it, "
            "or set run.device to cpu"
        )
    folder = ctx.work.scratch / "processes"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
    folder.mkdir(parents=True)
    # Why a process ended must find room where the disk of the root is full.
    with TempDir() as statuses, polling(relay_from(statuses / "rank-0.json", ctx.progress), POLL_SECONDS):
        request = {
            "parent": os.getpid(),
            "stage": stage,
            "settings": ctx.settings.model_dump(mode="json"),
            "root": str(ctx.store.root),
            "inputs": {name: artifact.fingerprint for name, artifact in ctx.inputs.items()},
            "out": str(ctx.work.out),
            "scratch": str(ctx.work.scratch),
            "statuses": str(statuses),
        }
        (folder / "request.json").write_text(json.dumps(request))
        _launch(folder, statuses, count)
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in trained_parameters(job.clip.model).items():
            parameter.copy_(weights[name])
    return TrainingResult(**json.loads((folder / RESULT).read_text()))


def _trackers(ctx: StageContext, stage: str, job: TrainingJob) -> Trackers:
    name = f"{ctx.settings.name}-{stage}-{ctx.work.out.parent.name[:12]}"
    run = TrackedRun(name, ctx.store.root / "logs/trackers", meaning(job.options))
    return Trackers(ctx.settings.run.trackers, run)


def _launch(folder: Path, statuses: Path, count: int) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"paraclip-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=POLL_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(
            "-P", "-m", "paraclip.tasks.training.bodies", str(folder / "request.json")
        )
    except SignalException as error:
        raise TrainingError(f"stopped by {error.sigval.name}; run again to resume") from error
    except ChildFailedError as error:
        for status in sorted(statuses.glob("rank-*.json")):
            if (failure := read_failure(status, TrainingError)) is not None:
                raise failure from error
        failed = ", ".join(
            f"{rank} ({failure.signal_name() if failure.exitcode < 0 else f'code {failure.exitcode}'})"
            for rank, failure in sorted(error.failures.items())
        )
        raise TrainingError(f"training process {failed} of {count} died; run again to resume") from error


def _main(request_path: Path) -> int:
    request: dict[str, Any] = json.loads(request_path.read_text())
    die_with(request["parent"])
    rank = int(os.environ["RANK"])
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s %(name)s {rank}: %(message)s")
    status = StatusFile(Path(request["statuses"], f"rank-{rank}.json"))
    try:
        with convert_disk_errors(request_path.parent):
            _take_part(request, rank, request_path.parent, status)
    except ParaclipError as error:
        log.exception("training failed in process %d", rank)
        status.fail(error)
        return error.exit_code
    return 0


def _take_part(request: dict[str, Any], rank: int, folder: Path, status: StatusFile) -> None:
    settings = settings_of(request["settings"])
    device = torch.device(settings.run.device if settings.run.device != "auto" else "cpu")
    if torch.cuda.is_available() and settings.run.device != "cpu":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": str(device)})})
    bound_kernel_cache()
    threads = settings.run.threads or os.cpu_count() or 1
    torch.set_num_threads(max(1, threads // int(os.environ["WORLD_SIZE"])))
    store = ArtifactStore(request["root"])
    inputs = {name: artifact for name, value in request["inputs"].items() if (artifact := store.find(name, value))}
    ctx = StageContext(Run(settings, store), inputs, WorkFolder(Path(request["out"]), Path(request["scratch"])))
    job = PREPARE[request["stage"]](ctx, rank == 0).job
    if rank == 0:
        job = replace(job, trackers=_trackers(ctx, request["stage"], job))
    with joined(device) as processes:
        result = train(replace(job, processes=processes), status.progress)
    if rank == 0:
        weights = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(job.clip.model).items()}
        write_tensors(weights, folder / WEIGHTS)
        (folder / RESULT).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started it decides
    sys.exit(_main(Path(sys.argv[1])))
