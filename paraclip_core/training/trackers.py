"""Training curves in other tools, none by default.

The training log has all figures. So a tracker that fails during training gets a warning and is dropped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from paraclip_core.errors import ConfigError

log = logging.getLogger(__name__)

PROJECT = "paraclip"


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers show it."""

    name: str
    """Stays the same when the run is resumed after a kill."""
    folder: Path
    """Parent of the folders of trackers that write files."""
    options: Mapping[str, Any]
    """Hyper-parameters, JSON-ready."""


class Tracker(Protocol):
    """A tool that draws curves; it is made when training begins after `step` steps of the run."""

    def __init__(self, run: TrackedRun, step: int) -> None: ...

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures after `step` steps, by names such as ``loss`` or ``validation/ao@10``."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


class TensorBoardTracker:
    """Event files in ``<folder>/tensorboard/<run>``; a later one hides the steps of earlier ones behind its first."""

    def __init__(self, run: TrackedRun, step: int) -> None:
        module: Any = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(run.folder / "tensorboard" / run.name), purge_step=step + 1)
        self._writer.add_text("options", f"```json\n{json.dumps(run.options, indent=2, sort_keys=True)}\n```")
        self.close = self._writer.close

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)


class TrackioTracker:
    """Trackio, or Weights & Biases, which has the same functions; both find server and account by themselves."""

    package = "trackio"

    def __init__(self, run: TrackedRun, step: int) -> None:
        self._module: Any = import_module(self.package)
        self.close = self._module.finish
        self._module.init(
            project=PROJECT, name=run.name, config=dict(run.options), resume="allow", **self.arguments(run)
        )

    def arguments(self, run: TrackedRun) -> dict[str, Any]:
        """Further arguments of `init`."""
        return {}

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._module.log(dict(figures), step=step)


class WandbTracker(TrackioTracker):
    """Weights & Biases keeps a run by its id, and files in a folder."""

    package = "wandb"

    def arguments(self, run: TrackedRun) -> dict[str, Any]:
        run.folder.mkdir(parents=True, exist_ok=True)
        return {"dir": str(run.folder), "id": run.name}


OPENERS: Mapping[str, Callable[[TrackedRun, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


class Trackers:
    """Several trackers as one; none of them can stop the training once it has begun."""

    def __init__(self, names: Sequence[str] = (), run: TrackedRun | None = None) -> None:
        """Trackers of a run, by name; they are opened by :meth:`begin`."""
        check_trackers(names)
        self._names, self._run = tuple(dict.fromkeys(names)), run
        self._open: dict[str, Tracker] = {}

    def begin(self, step: int) -> None:
        """Open the trackers of a run that has taken `step` steps."""
        for name in self._names:
            assert self._run is not None
            try:
                self._open[name] = OPENERS[name](self._run, step)
            except Exception as error:  # whatever a service's client raises
                raise ConfigError(f"run.trackers: {name} cannot open {self._run.name}: {error}; take it out") from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        self._each(lambda tracker: tracker.log(step, figures))

    def close(self) -> None:
        """Close each tracker."""
        self._each(lambda tracker: tracker.close())
        self._open = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever a service's client raises
                log.warning("tracker %s failed and is left alone from here: %s", name, error)
                del self._open[name]


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed, long before any of them is opened."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"run.trackers names {name}, which is not installed; `pip install {name}` or take it out")
