"""A paraphrase stage's shards, mapped over a Prefect task runner: threads on this machine, or Ray on a cluster."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

from prefect import flow, tags, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from paraclip.tasks.requests import ShardJob, ask_shard, plan_shards
from paraclip.tasks.run.run import Node, Run, Stop
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, CrashedError, StageError, with_notes, worth_a_retry
from paraclip_core.progress import Fact, Progress, silent

log = logging.getLogger(__name__)
T = TypeVar("T")

SUMS = ("generated", "cached", "requests_per_second", "tokens_per_second", "spend")
"""Facts of shards that add up."""
LOOK_SECONDS = 1.0
"""How often a shard that is waited for looks whether the run is being stopped."""


class Here(Generic[T]):
    """A value that stays in this process; elsewhere it is None.

    Prefect pickles the task and the flow that are under way, with parameters and closures, for Ray's workers. Locks and
    progress bars cannot be pickled, and nothing there may use them.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Here, (None,)


class Board:
    """Where shards on this machine say how far they are, and see that they have to stop."""

    def __init__(self, shards: int, progress: Progress, stop: Stop) -> None:
        """`progress` gets how far all of them are together."""
        self.stop = stop
        self._progress, self._shards = progress, shards
        self._reports: dict[int, tuple[int, int | None, Mapping[str, Any]]] = {}
        self._lock = threading.Lock()

    def progress_of(self, shard: int) -> Progress:
        """The progress of one shard, shown as part of all."""

        def progress(done: int, total: int | None, **facts: Fact) -> None:
            with self._lock:
                self._reports[shard] = done, total, facts
                totals = [total for _, total, _ in self._reports.values() if total is not None]
                whole = sum(totals) if len(totals) == self._shards else None
                self._progress(sum(done for done, _, _ in self._reports.values()), whole, **self._facts())

        return progress

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"shards": self._shards}
        for _, _, some in self._reports.values():
            facts |= {name: round(some[name] + facts.get(name, 0), 4) for name in SUMS if name in some}
            facts |= {name: some[name] for name in ("warning",) if name in some}
            if "eta_seconds" in some:
                facts["eta_seconds"] = max(some["eta_seconds"], facts.get("eta_seconds", 0))
        return facts


def _ask(job: ShardJob, shard: int, board: Board | None) -> dict[str, Any]:
    return ask_shard(job, shard) if board is None else ask_shard(job, shard, board.progress_of(shard), board.stop)


# With a cache policy Prefect would try to hash the board.
ask = task(name="shard", task_run_name="shard-{shard}", persist_result=False, cache_policy=NO_CACHE)(_ask)


def ask_in_shards(node: Node, run: Run, progress: Progress = silent) -> None:
    """Fill the generation cache with what a paraphrase stage will ask for, if the settings want shards.

    The stage afterwards finds the answers and writes the same artifact as without shards. A shard that fails does not
    stop the others. With Ray `progress` moves when a shard is done.
    """
    store, settings = run.store, run.settings
    if node.name not in STEPS or settings.run.shards < 2 or store.peek(node.name, node.fingerprint) is not None:
        return
    waiting = partial(progress, 0, None, waiting="for another run of the same stage")
    # The stage's own lock: a second run of it must not pay for the same requests.
    with store.writing(node.name, node.fingerprint, waiting, node.draft.inputs):
        if store.peek(node.name, node.fingerprint) is not None:
            return
        job = plan_shards(node, run, run.inputs(node))
        if job is not None:
            _map(job, run, progress)


def _map(job: ShardJob, run: Run, progress: Progress) -> None:
    settings, name, numbers = run.settings, str(job.draft["stage"]), list(range(job.shards))
    on_ray = settings.run.runner == "ray"
    board = None if on_ray else Board(job.shards, progress, run.stop)

    def ask_all(stage: str, shards: int) -> None:
        with _reserved(settings):
            futures = ask.map(unmapped(job), numbers, unmapped(board))
        failures: list[tuple[int, BaseException]] = []
        try:
            for shard, future in zip(numbers, futures, strict=True):
                if (failure := _failure(future, run.stop)) is not None:
                    failures.append((shard, failure))
                    log.error("%s: shard %d of %d failed: %s", stage, shard, shards, _reason(failure))
                    continue
                log.info("%s: shard %d of %d is done", stage, shard, shards)
                if on_ray:
                    progress(shard + 1, shards, shards=shards)
        except BaseException:
            # What cancels the flow must end the shards, whose threads the runner would wait for.
            run.stop.set()
            raise
        if failures:
            may_pass = all(worth_a_retry(failure, 1) for _, failure in failures)
            lines = "".join(f"\n- shard {shard}: {_reason(failure)}" for shard, failure in failures)
            raise (CrashedError if may_pass else StageError)(
                f"{len(failures)} of {shards} shards of {stage} failed; what the others were answered is kept, and the "
                f"next run asks for the rest:{lines}"
            )

    here = Here(ask_all)

    def shards(stage: str, shards: int) -> None:
        here.value(stage, shards)

    mapped = flow(
        name="shards",
        flow_run_name=f"{name}-shards",
        task_runner=_runner(settings, job.shards),
        persist_result=False,
        validate_parameters=False,
    )(shards)
    log.info("%s: %d shards, over %s", name, job.shards, settings.run.runner)
    # A flow inside another does not inherit its tags.
    with tags(*flow_run.tags):
        mapped(name, job.shards)


def _failure(future: PrefectFuture[dict[str, Any]], stop: Stop) -> BaseException | None:
    """Why a shard failed; None where it did not."""
    result: Any = None
    while result is None:
        stop.check()
        try:
            result = future.result(LOOK_SECONDS, raise_on_failure=False)
        except TimeoutError:
            continue
        except Exception as error:
            # A worker of Ray that dies takes the state of its task with it.
            result = error
    return result if isinstance(result, BaseException) else None


def _reason(failure: BaseException) -> str:
    return with_notes(failure) or type(failure).__name__


def _runner(settings: Settings, workers: int) -> TaskRunner[Any]:
    if settings.run.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    # Ray would tell its makers about the cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError("run.runner=ray needs the package prefect-ray: pip install 'paraclip[ray]'") from error
    if address := os.environ.get("RAY_ADDRESS"):
        return RayTaskRunner(address=address)
    return RayTaskRunner(init_kwargs={"num_cpus": workers, "include_dashboard": False, "log_to_driver": False})


def _reserved(settings: Settings) -> AbstractContextManager[Any]:
    """What Ray keeps for each shard."""
    if settings.run.runner == "threads":
        return nullcontext()
    from prefect_ray.context import remote_options

    return remote_options(num_cpus=1, num_gpus=1 if settings.run.device.startswith("cuda") else 0)
