"""The missing requests of a paraphrase stage, divided among processes; whoever maps them decides where those run.

A shard runs the stage's rounds for the rows whose request's key falls to it. It leaves generations and verdicts in the
cache and nothing else: the stage then finds all of them and selects. A shard that is done finds nothing missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_store
from paraclip.tasks.child import Stop, call_in_child, log_path, settings_of
from paraclip.tasks.context import Run
from paraclip.tasks.requests import step_left
from paraclip.tasks.stage import Node
from paraclip.tasks.stages.paraphrase import STEPS, UPSTREAM, paraphrasing
from paraclip.tasks.status import StatusFile, relay_from
from paraclip_core.errors import ArtifactError
from paraclip_core.lifetime import TempDir
from paraclip_core.progress import Progress, silent

log = logging.getLogger(__name__)

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
    settings: Mapping[str, Any]
    root: str


def plan_shards(node: Node, run: Run, inputs: Mapping[str, Artifact]) -> ShardJob | None:
    """The shards among which a stage's missing requests are divided; None where one process does them."""
    settings = run.settings
    step, most = STEPS.get(node.name), settings.run.shards
    if step is None or most < 2:
        return None
    options, one_machine = run.paraphraser.options, settings.run.runner == "threads"
    for asked in filter(None, (run.paraphraser, run.paraphraser.judge)):
        if reason := asked.facts.unshardable(one_machine):
            log.info("%s is not cut into shards: %s", node.name, reason)
            return None
    upstream = inputs[UPSTREAM[step]]
    left = step_left(run, step, upstream)
    # Where rejected rows are asked for again, or a judge is asked, more may be missing than can be counted now.
    further = options.attempts > 1 or bool(options.regenerate) or options.judge is not None
    shards = min(most, (left.rows if further else left.missing) // SHARD_REQUESTS)
    if shards < 2:
        return None
    place = settings.run
    if one_machine:
        threads = place.threads or max(1, (os.cpu_count() or 1) // shards)
        place = place.model_copy(update={"threads": threads})
    job_settings = settings.model_copy(update={"run": place}).model_dump(mode="json")
    return ShardJob(step, shards, asdict(node.draft), upstream.fingerprint, job_settings, run.store.location)


def ask_shard(job: ShardJob, shard: int, progress: Progress = silent, stop: Stop | None = None) -> dict[str, Any]:
    """Run one shard in a child process; what it counted."""
    store, settings = open_store(job.root), settings_of(job.settings)
    stage, fingerprint = job.draft["stage"], job.draft["fingerprint"]
    path = log_path(store, stage, f"{fingerprint}-shard-{shard}-of-{job.shards}")
    request = {**asdict(job), "shard": shard}
    return call_in_child("paraclip.tasks.shards:run_shard", request, settings, path, progress, stop)


def reporting(job: ShardJob, shard: int) -> Progress:
    """A progress that a shard on another machine leaves under the root, for :func:`followed`."""
    path = _report(job, shard)
    if path is None:
        return silent
    # What cannot be told is no reason to stop.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return StatusFile(path, REPORT_SECONDS).progress


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


def forget_reports(job: ShardJob) -> None:
    """Delete what shards have left with :func:`reporting`."""
    for path in (_report(job, shard) for shard in range(job.shards)):
        if path is not None:
            with suppress(OSError):
                path.unlink()


def _report(job: ShardJob, shard: int) -> Path | None:
    store = open_store(job.root)
    name = f"{job.draft['stage']}-{job.draft['fingerprint']}-{shard}-of-{job.shards}.progress"
    return store.cache / "shards" / name if store.remote is None else None


def run_shard(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run one shard, here; `request` is a :class:`ShardJob` and the number of the shard."""
    shard, step = request["shard"], request["step"]
    settings, store = settings_of(request["settings"]), open_store(request["root"])
    upstream = store.find(UPSTREAM[step], request["upstream"])
    if upstream is None:
        name = f"{UPSTREAM[step]}/{request['upstream']}"
        raise ArtifactError(
            f"the artifact {name} is not under {store.location}: run.root must be the same shared folder or object "
            f"store for every worker"
        )
    place = settings.run.model_copy(update={"device": _device(Run(settings, store), shard)})
    run = Run(settings.model_copy(update={"run": place}), store)
    with (
        TempDir() as scratch,
        paraphrasing(run, step, upstream, scratch, progress, (shard, request["shards"])) as rounds,
    ):
        rounds.run()
    return rounds.counts.metrics()


def _device(run: Run, shard: int) -> str:
    """On one machine with several GPUs each shard takes another one; Ray shows a shard its own GPUs only."""
    device = run.settings.run.device
    if device != "auto" or run.settings.run.runner != "threads" or not run.paraphraser.facts.local:
        return device
    import torch

    return f"cuda:{shard % torch.cuda.device_count()}" if torch.cuda.device_count() > 1 else device
