"""A paraphrase stage's shards, mapped over a Prefect task runner: threads on this machine, or Ray on a cluster."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from prefect import flow, tags, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from paraclip.flows.here import Here
from paraclip.tasks.run.run import Node, Run, Stop
from paraclip.tasks.run.status import EventLog, both, events_path, polling
from paraclip.tasks.shards import ShardJob, ask_shard, followed, forget_reports, plan_shards, reporting
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, CrashedError, StageError, with_notes, worth_a_retry
from paraclip_core.progress import Fact, Progress, silent

log = logging.getLogger(__name__)

SUMS = ("generated", "cached", "requests_per_second", "tokens_per_second", "spend")
"""Facts of shards that add up."""
LOOK_SECONDS = 1.0
"""How often it is looked what shards elsewhere say."""

Failures = list[tuple[int, BaseException]]
"""Number of a shard, and why it failed."""


class Board:
    """Where shards say how far they are; those on this machine see here that they have to stop, too."""

    def __init__(self, shards: int, progress: Progress, stop: Stop) -> None:
        """`progress` is told how far all of them are together; `stop` ends those on this machine."""
        self.stop = stop
        self.heard = False
        """Whether any has said something."""
        self._progress, self._shards = progress, shards
        self._told: dict[int, tuple[int, int | None, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def told(self, shard: int) -> Progress:
        """The progress of one shard, shown as part of all."""

        def progress(done: int, total: int | None, **facts: Fact) -> None:
            with self._lock:
                self.heard = True
                self._told[shard] = done, total, facts
                self._show()

        return progress

    def _show(self) -> None:
        reports = list(self._told.values())
        totals = [total for _, total, _ in reports if total is not None]
        whole = sum(totals) if len(totals) == self._shards else None
        facts = _summed(f for _, _, f in reports) | _acceptance(reports)
        self._progress(sum(done for done, _, _ in reports), whole, shards=self._shards, **facts)


def _acceptance(told: Iterable[tuple[int, int | None, Mapping[str, Any]]]) -> dict[str, float]:
    """The shards' mean, each weighted by its rows."""
    shares = [(done, facts["acceptance"]) for done, _, facts in told if done and "acceptance" in facts]
    rows = sum(done for done, _ in shares)
    return {"acceptance": round(sum(done * share for done, share in shares) / rows, 3)} if rows else {}


def _summed(facts: Iterable[Mapping[str, Any]]) -> dict[str, float | int | str]:
    sums: dict[str, float | int | str] = {}
    for some in facts:
        for name, value in some.items():
            if name == "eta_seconds":
                sums[name] = max(value, sums.get(name, 0))
            elif name in SUMS:
                sums[name] = round(value + sums.get(name, 0), 4)
            elif name == "warning":
                sums[name] = value
    return sums


def _ask(job: ShardJob, shard: int, board: Board | None) -> dict[str, Any]:
    if board is None:
        return ask_shard(job, shard, reporting(job, shard))
    return ask_shard(job, shard, board.told(shard), board.stop)


# With a cache policy Prefect would try to hash the board.
ask = task(name="shard", task_run_name="shard-{shard}", persist_result=False, cache_policy=NO_CACHE)(_ask)


def ask_in_shards(node: Node, run: Run, progress: Progress = silent) -> None:
    """Fill the generation cache with what a paraphrase stage will ask for, if the settings want shards.

    The stage afterwards finds the answers and writes the same artifact as without shards. A shard that fails does not
    stop the others.

    Args:
        node: the stage.
        run: the run.
        progress: told how far all shards are together; with Ray only when one is done where no folder is shared.
    """
    store, settings = run.store, run.settings
    if node.name not in STEPS or settings.run.shards < 2 or store.peek(node.name, node.fingerprint) is not None:
        return

    def waiting() -> None:
        progress(0, None, waiting="for another run of the same stage")

    # The stage's own lock: a second run of it must not pay for the same requests.
    with store.writing(node.name, node.fingerprint, waiting, node.draft.inputs):
        if store.peek(node.name, node.fingerprint) is not None:
            return
        job = plan_shards(node, run, run.inputs(node))
        if job is not None:
            path = events_path(store, node.name, node.fingerprint)
            with EventLog(path, node.name, node.fingerprint, "shards") as events:
                events.counted({"shards": job.shards})
                _map(job, run, both(progress, events.progress))


def _map(job: ShardJob, run: Run, progress: Progress) -> None:
    settings, name, numbers = run.settings, str(job.draft["stage"]), list(range(job.shards))
    on_ray = settings.run.runner == "ray"
    board = Board(job.shards, progress, run.stop)

    def ask_all(stage: str, shards: int) -> None:
        # It forgets what an earlier run's shards said, so it begins before them.
        with _following(job, board) if on_ray else nullcontext():
            with _reserved(settings):
                futures = ask.map(unmapped(job), numbers, unmapped(None if on_ray else board))
            collect(futures, stage, shards)

    def collect(futures: Iterable[PrefectFuture[dict[str, Any]]], stage: str, shards: int) -> None:
        failures: Failures = []
        try:
            for done, (shard, future) in enumerate(zip(numbers, futures, strict=True), 1):
                failure = _failure(future, run.stop)
                if failure is not None:
                    failures.append((shard, failure))
                    log.error("%s: shard %d of %d failed: %s", stage, shard, shards, _reason(failure))
                    continue
                log.info("%s: shard %d of %d is done", stage, shard, shards)
                if on_ray and not board.heard:
                    progress(done, shards, shards=shards)
        except BaseException:
            # What cancels the flow must end the shards, whose threads the runner would wait for.
            run.stop.set()
            raise
        if failures:
            may_pass = all(worth_a_retry(failure, 1) for _, failure in failures)
            raise (CrashedError if may_pass else StageError)(_text(stage, shards, failures))

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


@contextmanager
def _following(job: ShardJob, board: Board) -> Iterator[None]:
    """Read, while it lasts, what shards on other machines say."""
    looks = [followed(job, shard, board.told(shard)) for shard in range(job.shards)]
    try:
        with polling(lambda: [look() for look in looks], LOOK_SECONDS):
            yield
    finally:
        forget_reports(job)


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


def _text(stage: str, shards: int, failures: Failures) -> str:
    lines = "".join(f"\n- shard {shard}: {_reason(failure)}" for shard, failure in failures)
    return (
        f"{len(failures)} of {shards} shards of {stage} failed; what the others were answered is kept, and the next "
        f"run asks for the rest:{lines}"
    )


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
