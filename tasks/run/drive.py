"""The driver of every run: checks before it starts, picks the next stage, and ends the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from paraclip.tasks.channels import check_run_name, record_result
from paraclip.tasks.results import Result, Row
from paraclip.tasks.run.execute import carry
from paraclip.tasks.run.run import Node, Run
from paraclip.tasks.stages.ingest import need_rows
from paraclip_core.errors import ConfigError, ParaclipError
from paraclip_core.progress import Progress

Show = Callable[[list[Row], list[str]], object]
"""Called with the rows of the finished stages, in order, and the names of those that are left."""


class Workers(Protocol):
    """What executes the stages of a run: the tasks of a flow, or the calling thread."""

    def start(self, node: Node, inputs: Sequence[str]) -> bool:
        """Start a stage whose inputs are finished; False if its slots are taken."""
        ...

    def next(self) -> tuple[str, Row | BaseException]:
        """Wait for a stage to end; return its name, and its row or its error."""
        ...

    def wait(self) -> None:
        """Wait for every running stage, after the run's `stop` was set."""
        ...


def drive(run: Run, workers: Workers, show: Show = lambda rows, left: None) -> Result:
    """Run every unfinished stage, each when its inputs are finished, and store the results.

    The first stage that fails stops the others at their next checkpoint and ends the run with its error, which names
    the stage; another call continues from there.
    """
    check_run_name(run.settings.name, run.store)
    run.need_files()
    need_rows(run)
    run.check_trackers()
    return record_result(run, _rows(run, workers, show))


def finished(run: Run, start: str | None = None) -> Result | None:
    """The outcome of a run whose stages are all finished; None if any is not.

    Raises ConfigError if a stage before `start` is not finished, or there is nothing to run on.
    """
    check_run_name(run.settings.name, run.store)
    run.need_files()
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
    """Executes the stages of a run in the calling thread, one after the other."""

    def __init__(
        self,
        run: Run,
        progress_of: Callable[[str], AbstractContextManager[Progress]],
        warn: Callable[[str], object],
        say: Callable[[str], object],
    ) -> None:
        """Show `progress_of` a stage while it runs; `warn` gets notices, `say` a line for each finished stage."""
        self._run, self._progress_of, self._warn, self._say = run, progress_of, warn, say
        self._ended: list[tuple[str, Row | BaseException]] = []

    def start(self, node: Node, inputs: Sequence[str]) -> bool:
        if self._ended:
            return False
        try:
            with self._progress_of(node.name) as progress:
                row = carry(node, self._run, progress, self._warn, self._say)[1]
            self._ended.append((node.name, row))
        except ParaclipError as error:
            self._ended.append((node.name, error))
        return True

    def next(self) -> tuple[str, Row | BaseException]:
        return self._ended.pop()

    def wait(self) -> None:
        """Nothing to wait for: stages run in the calling thread."""


def _rows(run: Run, workers: Workers, show: Show) -> list[Row]:
    # Now: captions that arrive while it runs belong to the next run, and must not give this one a mix of two sets.
    waiting, working, rows = dict(run.nodes), list[str](), dict[str, Row]()
    try:
        while waiting or working:
            for name, node in list(waiting.items()):
                inputs = (*node.stage.inputs(run.settings), *node.stage.after(run.settings))
                if all(upstream in rows for upstream in inputs) and workers.start(node, inputs):
                    del waiting[name]
                    working.append(name)
            name, row = workers.next()
            working.remove(name)
            if isinstance(row, BaseException):
                # The run's state shows only this text, and stages run concurrently.
                row.args = (f"{name}: {row}", *row.args[1:])
                raise row
            rows[name] = row
            show([rows[name] for name in run.nodes if name in rows], [*working, *waiting])
    except BaseException as error:
        # A pool's threads receive no signal, and their processes would keep running.
        run.stop.reason = error
        run.stop.set()
        workers.wait()
        raise
    return [rows[name] for name in run.nodes]
