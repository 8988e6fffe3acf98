"""A paraphrase stage's requests in shards, each in a process of its own; whoever maps them decides where those run.

Shards leave generations in the cache and nothing else. A note under ``cache/shards/`` remembers which shards of a
stage are done, so that a run that goes on starts only the others.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.intake import count_wanted
from paraclip_core.paraphrase.relevant import relevant
from paraclip_core.paraphrase.shards import asking_only, count_missing, first_requests, own_rows, unsharded_because
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore
from storage.atomic import write_json
from storage.roots import open_generations, open_store
from tasks.answers import relay_from, report_to
from tasks.asking import one_asking
from tasks.child import call_in_child, log_path
from tasks.dag import Node
from tasks.models import model_hashes
from tasks.samples import samples_path
from tasks.stages.paraphrase import UPSTREAM, make_paraphraser, step_fraction, step_rows

__all__ = ["STEPS", "ShardJob", "ask_shard", "followed", "forget", "generate_shard", "plan_shards", "reporting"]

log = logging.getLogger(__name__)

STEPS = {f"paraphrase_{step}": step for step in UPSTREAM}
"""The stages that have shards."""

SHARD_REQUESTS = 64
"""Requests that are worth a process of their own."""
REPORT_SECONDS = 1.0
"""A shard elsewhere says how far it is once in so many seconds."""


@dataclass(frozen=True)
class ShardJob:
    """What the shards of one stage have in common; plain data, so that another machine can be told."""

    step: int
    shards: int
    draft: Mapping[str, Any]
    upstream: str
    """Fingerprint of the artifact with the step's rows."""
    fraction: float
    """Share of the rows that the step looks at."""
    settings: Mapping[str, Any]
    root: str
    done: tuple[int, ...] = ()
    """Shards that an earlier run finished."""

    judges: bool = False
    """Whether the shards apply the run's gates; else what they say of acceptance says nothing."""

    @property
    def todo(self) -> list[int]:
        """Shards that are still to be asked for."""
        return [shard for shard in range(self.shards) if shard not in self.done]

    def notes(self, store: ArtifactStore) -> Path:
        """Folder with a note for each shard that is done."""
        return _notes(store, self.draft["stage"], self.draft["fingerprint"]) / str(self.shards)

    def note(self, store: ArtifactStore, shard: int, counts: Mapping[str, Any]) -> None:
        """Remember that a shard is done."""
        write_json(self.notes(store) / f"{shard}.json", dict(counts))


def plan_shards(
    node: Node, settings: Settings, store: ArtifactStore, inputs: Mapping[str, Artifact]
) -> ShardJob | None:
    """The shards that a stage's missing requests are asked for in; None where one process asks for them.

    Raises:
        ParaclipError: the cache or the rows cannot be read.
    """
    step, wanted = STEPS.get(node.name), settings.run.shards
    if step is None or wanted < 2:
        return None
    options, one_machine = relevant(settings.paraphrase), settings.run.runner == "threads"
    if reason := unsharded_because(options, one_machine):
        log.info("%s is not cut into shards: %s", node.name, reason)
        return None
    upstream = inputs[UPSTREAM[step]]
    rows = count_wanted(step_rows(upstream.path, step), step_fraction(options, step))
    # By the rows, not by what is missing: a run that goes on must find the same shards.
    shards = min(wanted, rows // SHARD_REQUESTS)
    if shards < 2 or not _worthwhile(settings, step, store, upstream):
        return None
    told = settings.model_copy(update={"paraphrase": asking_only(options, step)})
    if one_machine:
        threads = settings.run.threads or max(1, (os.cpu_count() or 1) // shards)
        told = told.model_copy(update={"run": settings.run.model_copy(update={"threads": threads})})
    job = ShardJob(
        step,
        shards,
        asdict(node.draft),
        upstream.fingerprint,
        step_fraction(options, step),
        told.model_dump(mode="json"),
        store.location,
        judges=told.paraphrase.chosen_gates().preset == options.chosen_gates().preset,
    )
    return replace(job, done=tuple(shard for shard in range(shards) if (job.notes(store) / f"{shard}.json").exists()))


def _worthwhile(settings: Settings, step: int, store: ArtifactStore, rows: Artifact) -> bool:
    """Whether enough is missing; where later attempts are asked for, only judging would tell."""
    options = relevant(settings.paraphrase)
    if options.attempts > 1 or options.regenerate:
        return True
    engine = make_engine(options, settings.data.root, hash_files=model_hashes(settings))
    first = first_requests(options, step, engine.model)
    enough = 2 * SHARD_REQUESTS
    with closing(open_generations(store)) as cache:
        share = step_fraction(options, step)
        return count_missing(step_rows(rows.path, step), step, share, first, cache, enough) >= enough


def ask_shard(
    job: ShardJob, shard: int, progress: Progress = silent, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Ask for one shard's requests in a child process; what it counted.

    Raises:
        ParaclipError: what the engine raised; what it had answered is kept.
        StageError: the child crashed, was killed or stopped.
    """
    store, settings = open_store(job.root), Settings.model_validate(job.settings)
    stage, fingerprint = job.draft["stage"], job.draft["fingerprint"]
    path = log_path(store, stage, f"{fingerprint}-shard-{shard}-of-{job.shards}")
    request = {**asdict(job), "shard": shard}
    return call_in_child("tasks.shards:generate_shard", request, settings, path, progress, stop)


def reporting(job: ShardJob, shard: int) -> Progress:
    """A progress that a shard on another machine leaves under the root, for :func:`followed`."""
    path = _report(job, shard)
    if path is None:
        return silent
    # What cannot be told is no reason to stop.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return report_to(path, REPORT_SECONDS)


def followed(job: ShardJob, shard: int, progress: Progress) -> Callable[[], None]:
    """Tells `progress`, each time it is called, what the shard has left with :func:`reporting` since.

    Nothing comes where the root is no folder that both machines see.
    """
    path = _report(job, shard)
    if path is None:
        return lambda: None
    # An earlier run's says nothing about this one.
    path.unlink(missing_ok=True)
    look = relay_from(path, progress)

    def safely() -> None:
        # A shared folder may lose a file while it is read.
        with suppress(OSError, ValueError):
            look()

    return safely


def _report(job: ShardJob, shard: int) -> Path | None:
    store = open_store(job.root)
    return job.notes(store) / f"{shard}.progress" if store.mirror is None else None


def generate_shard(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Ask for one shard's requests, here; `request` is a :class:`ShardJob` and the number of the shard.

    Raises:
        ArtifactError: the rows are gone.
        EngineError: the engine failed; what it had answered is kept.
    """
    shard, step, shards = request["shard"], request["step"], request["shards"]
    settings, store = Settings.model_validate(request["settings"]), open_store(request["root"])
    upstream = store.find(UPSTREAM[step], request["upstream"])
    if upstream is None:
        name = f"{UPSTREAM[step]}/{request['upstream']}"
        raise ArtifactError(
            f"the artifact {name} is not under {store.location}: run.root must be the same shared folder or object "
            f"store for every worker"
        )
    options = relevant(settings.paraphrase)
    engine = make_engine(options, settings.data.root, _device(settings, shard), model_hashes(settings))
    first = first_requests(options, step, engine.model)

    def rows() -> Iterator[pa.RecordBatch]:
        share = float(request["fraction"])
        return own_rows(step_rows(upstream.path, step), step, share, first, shard, shards)

    alone = one_asking(store, options, step, engine.model, upstream, progress, f"{shard} of {shards}")
    with closing(engine), alone, closing(open_generations(store)) as cache:
        total = count_wanted(rows(), 1.0)
        samples = samples_path(store, request["draft"]["stage"], request["draft"]["fingerprint"])
        paraphraser = make_paraphraser(settings, step, engine, cache, progress, total, samples)
        for _ in paraphraser.run(rows()):
            pass
    return paraphraser.counts.metrics()


def _device(settings: Settings, shard: int) -> str:
    """On one machine with several GPUs each shard takes another one; Ray shows a shard its own GPUs only."""
    device = settings.run.device
    if device != "auto" or settings.run.runner != "threads" or settings.paraphrase.engine != "transformers":
        return device
    import torch

    return f"cuda:{shard % torch.cuda.device_count()}" if torch.cuda.device_count() > 1 else device


def forget(store: ArtifactStore, stage: str, fingerprint: str) -> None:
    """Delete the notes on a stage's shards, once the stage itself is finished."""
    shutil.rmtree(_notes(store, stage, fingerprint), ignore_errors=True)


def _notes(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    return store.cache / "shards" / f"{stage}-{fingerprint}"
