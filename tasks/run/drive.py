"""The one driver of a run: what holds before it begins, which stage is next, and how the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from paraclip.tasks.channels import check_run_name, record_result
from paraclip.tasks.results import Result, stage_row
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Node, Run
from paraclip.tasks.stages.ingest import need_rows
from paraclip_core.errors import ConfigError, ParaclipError
from paraclip_core.progress import Progress

Row = dict[str, Any]
"""A stage's row of the stage table."""
Show = Callable[[list[Row], list[str]], object]
"""Gets the rows of the finished stages, in their order, and the names of those that are left."""


class Workers(Protocol):
    """What carries the stages of a run out: the tasks of a flow, or the calling thread."""

    def start(self, node: Node, inputs: Sequence[str]) -> bool:
        """Start a stage whose inputs are finished; False if what it computes on is taken."""
        ...

    def next(self) -> tuple[str, Row | BaseException]:
        """Wait for a stage that ends; its name, and its row or its error."""
        ...

    def wait(self) -> None:
        """Wait for every stage that is at work, after the run's `stop` was set."""
        ...


def drive(run: Run, workers: Workers, show: Show = lambda rows, left: None) -> Result:
    """Run every stage that is not finished, each when its inputs are, and keep what came out.

    The first stage that fails ends the others at their next checkpoint, and the run with its error, which names it.

    Raises:
        ParaclipError: what a stage or a check before it raised; another call goes on from there.
    """
    check_run_name(run.settings.name, run.store)
    need_rows(run)
    # Now: captions that come while it runs are the next run's, and must not leave this one between two sets of them.
    nodes = run.nodes
    run.check_trackers()
    with run.store.mark_run({name: node.fingerprint for name, node in nodes.items()}):
        return record_result(run, _rows(run, workers, show))


def finished(run: Run, start: str | None = None) -> Result | None:
    """The outcome of a run whose stages are all finished; None if one is not.

    Raises:
        ConfigError: a stage before `start` is not finished, or there is nothing to run on.
    """
    check_run_name(run.settings.name, run.store)
    artifacts = run.artifacts()
    if start is not None:
        before = list(run.stages)[: list(run.stages).index(run.node(start).name)]
        if missing := [name for name in before if name not in artifacts]:
            raise ConfigError(
                f"--from {start}: {', '.join(missing)} must be finished and {'are' if missing[1:] else 'is'} not; "
                f"`paraclip plan` with the same options says why. Without --from everything that is missing is made"
            )
    if len(artifacts) < len(run.stages):
        need_rows(run)
        return None
    return record_result(run)


class InTurn:
    """Carries the stages of a run out in the calling thread, one after the other."""

    def __init__(
        self,
        run: Run,
        progress_of: Callable[[str], AbstractContextManager[Progress]],
        warn: Callable[[str], object],
        tell: Callable[[str], object],
    ) -> None:
        """`progress_of` a stage is shown while it runs; `warn` gets notices, `tell` a line for each finished stage."""
        self._run, self._progress_of, self._warn, self._tell = run, progress_of, warn, tell
        self._ended: list[tuple[str, Row | BaseException]] = []

    def start(self, node: Node, inputs: Sequence[str]) -> bool:
        if self._ended:
            return False
        try:
            self._ended.append((node.name, self._row(node)))
        except ParaclipError as error:
            self._ended.append((node.name, error))
        return True

    def next(self) -> tuple[str, Row | BaseException]:
        return self._ended.pop()

    def wait(self) -> None:
        """Nothing is at work beside the caller."""

    def _row(self, node: Node) -> Row:
        started, cached = time.monotonic(), self._run.artifact(node.name) is not None
        for notice in node.stage.check_before(self._run):
            self._warn(notice)
        with self._progress_of(node.name) as progress:
            artifact = run_stage(node, self._run, progress)
        row = stage_row(artifact, cached, time.monotonic() - started)
        self._tell(f"{node.name}: {row['state']}, {row['seconds']:.0f} s")
        return row


def _rows(run: Run, workers: Workers, show: Show) -> list[Row]:
    waiting, working, rows = dict(run.nodes), list[str](), dict[str, Row]()
    try:
        while waiting or working:
            for name, node in list(waiting.items()):
                inputs = [upstream for upstream in node.stage.inputs(run.settings) if upstream in run.stages]
                if all(upstream in rows for upstream in inputs) and workers.start(node, inputs):
                    del waiting[name]
                    working.append(name)
            name, row = workers.next()
            working.remove(name)
            if isinstance(row, BaseException):
                # The run's state says no more than this text, and stages run side by side.
                row.args = (f"{name}: {row}", *row.args[1:])
                raise row
            rows[name] = row
            show([rows[name] for name in run.nodes if name in rows], [*working, *waiting])
    except BaseException as error:
        # A pool's threads hear no signal, and their processes would work on.
        run.stop.reason = error
        run.stop.set()
        workers.wait()
        raise
    return [rows[name] for name in run.nodes]
