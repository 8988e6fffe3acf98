"""Training curves in other tools, none by default.

The training log has all figures. So a tracker that fails during training gets a warning and is dropped.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TextIO

from paraclip_core.errors import ConfigError

log = logging.getLogger(__name__)

PROJECT = "paraclip"


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers show it."""

    name: str
    """Stays the same when the run goes on after a kill."""
    folder: Path
    """Parent of the folders of trackers that write files."""
    options: Mapping[str, Any]
    """Hyper-parameters, JSON-ready."""


class Tracker(Protocol):
    """A tool that draws curves."""

    def begin(self, step: int) -> None:
        """Drop figures after `step` steps, which a killed run may have logged: they come again."""
        ...

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures after `step` steps, by names such as ``loss`` or ``validation/ao@10``."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


class FileTracker:
    """JSON lines in ``<folder>/file/<run>.jsonl``."""

    def __init__(self, run: TrackedRun) -> None:
        """Append to the run's file."""
        self._path = run.folder / "file" / f"{run.name}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._opened()

    def begin(self, step: int) -> None:
        """Keep the complete lines of the first `step` steps."""
        self._file.close()
        with self._path.open("r+b") as file:
            lines = file.readlines()
            file.seek(0)
            file.writelines(line for line in lines if _step(line) <= step)
            file.truncate()
        self._file = self._opened()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a line."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _opened(self) -> TextIO:
        # Line by line, or a kill would take the steps before a checkpoint with it.
        return self._path.open("a", encoding="utf-8", buffering=1)


def _step(line: bytes) -> float:
    """A line's step, infinite for a damaged line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


class TensorBoardTracker:
    """Event files in ``<folder>/tensorboard/<run>``."""

    def __init__(self, run: TrackedRun) -> None:
        """Make the run's folder; `begin` opens the event file, because a writer cannot take back."""
        self._module = _imported("torch.utils.tensorboard", "tensorboard")
        self._run, self._folder = run, run.folder / "tensorboard" / run.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Open an event file that makes TensorBoard hide later steps of earlier files."""
        self._writer = self._module.SummaryWriter(str(self._folder), purge_step=step + 1)
        options = json.dumps(self._run.options, indent=2, sort_keys=True)
        self._writer.add_text("options", f"```json\n{options}\n```")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a scalar for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """Weights & Biases, or Trackio, which has the same functions; both find server and account by themselves."""

    def __init__(self, run: TrackedRun, package: str) -> None:
        """Begin a run, or go on with it."""
        self._module = _imported(package, package)
        own = {"dir": str(run.folder), "id": run.name} if package == "wandb" else {}
        if own:
            run.folder.mkdir(parents=True, exist_ok=True)
        self._module.init(project=PROJECT, name=run.name, config=dict(run.options), resume="allow", **own)

    def begin(self, step: int) -> None:
        """A service keeps what it has."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures."""
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._module.finish()


OPENERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "file": FileTracker,
    "tensorboard": TensorBoardTracker,
    "trackio": lambda run: WandbTracker(run, "trackio"),
    "wandb": lambda run: WandbTracker(run, "wandb"),
}


class Trackers:
    """Several trackers as one; none of them can stop the training."""

    def __init__(self, trackers: Mapping[str, Tracker] | None = None) -> None:
        """Use `trackers`, by name."""
        self._trackers = dict(trackers or {})

    def begin(self, step: int) -> None:
        """See :meth:`Tracker.begin`."""
        self._each(lambda tracker: tracker.begin(step))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        self._each(lambda tracker: tracker.log(step, figures))

    def close(self) -> None:
        """Close each tracker."""
        self._each(lambda tracker: tracker.close())
        self._trackers = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever a service's client raises
                log.warning("tracker %s failed and is left alone from here: %s", name, error)
                del self._trackers[name]


def open_trackers(names: Sequence[str], run: TrackedRun) -> Trackers:
    """Open the named trackers."""
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        try:
            opened[name] = OPENERS[name](run)
        except ConfigError:
            raise
        except Exception as error:  # whatever a service's client raises
            raise ConfigError(f"run.trackers: {name} cannot begin the run {run.name}: {error}; take it out") from error
    return Trackers(opened)


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed, long before any of them is opened."""
    for name in names:
        if OPENERS[name] is not FileTracker and find_spec(name) is None:
            raise _not_installed(name)


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise _not_installed(package) from error


def _not_installed(package: str) -> ConfigError:
    return ConfigError(
        f"run.trackers names a tracker that needs the package {package}, which is not installed; "
        f"`pip install {package}` or take it out"
    )
