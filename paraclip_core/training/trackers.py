"""Training curves in external tools, none by default.

The training log has all figures, so a tracker that fails during training is dropped with a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from paraclip_core.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """A run as shown by trackers."""

    name: str
    """Unchanged when the run is resumed after a kill."""
    folder: Path
    """Parent of the folders of trackers that write files."""
    options: Mapping[str, Any]
    """Hyper-parameters, JSON-ready."""


class TensorBoard:
    """Event files in ``<folder>/tensorboard/<run>``; a later file hides earlier steps from its first one on."""

    def __init__(self, run: TrackedRun, step: int) -> None:
        module: Any = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(run.folder / "tensorboard" / run.name), purge_step=step + 1)
        self._writer.add_text("options", f"```json\n{json.dumps(run.options, indent=2, sort_keys=True)}\n```")
        self.close = self._writer.close

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)


class Service:
    """Trackio or Weights & Biases, which have the same API; both find their server and account by themselves."""

    def __init__(self, package: str, run: TrackedRun, step: int) -> None:
        self._module: Any = import_module(package)
        self.close = self._module.finish
        more: dict[str, Any] = {}
        if package == "wandb":  # it identifies a run by its id, and writes files to a folder
            run.folder.mkdir(parents=True, exist_ok=True)
            more = {"dir": str(run.folder), "id": run.name}
        self._module.init(project="paraclip", name=run.name, config=dict(run.options), resume="allow", **more)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._module.log(dict(figures), step=step)


OPENERS: Mapping[str, Callable[[TrackedRun, int], Any]] = {
    "tensorboard": TensorBoard,
    "trackio": partial(Service, "trackio"),
    "wandb": partial(Service, "wandb"),
}
"""Opens a tracker for a run from a step on; its `log` takes a step's figures, by names such as ``validation/ao@10``."""
if TYPE_CHECKING:
    TrackerName: TypeAlias = str
else:
    TrackerName = Literal[(*OPENERS,)]


class Trackers:
    """Several trackers as one; none of them can stop training once it has begun."""

    def __init__(self, names: Sequence[str] = (), run: TrackedRun | None = None) -> None:
        """Trackers of a run, by name; they are opened by :meth:`begin`."""
        check_trackers(names)
        self._names, self._run = tuple(dict.fromkeys(names)), run
        self._open: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Open the trackers of a run that has taken `step` steps."""
        for name in self._names:
            assert self._run is not None
            try:
                self._open[name] = OPENERS[name](self._run, step)
            except Exception as error:  # clients have many error types
                raise ConfigError(f"run.trackers: {name} cannot open {self._run.name}: {error}; remove it") from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures after a step."""
        self._each(lambda tracker: tracker.log(step, figures))

    def close(self) -> None:
        """Close each tracker."""
        self._each(lambda tracker: tracker.close())
        self._open = {}

    def _each(self, call: Callable[[Any], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # clients have many error types
                log.warning("tracker %s failed and is no longer used: %s", name, error)
                del self._open[name]


def check_trackers(names: Sequence[str]) -> None:
    """Check early that the packages of trackers are installed, long before any is opened."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"run.trackers names {name}, which is not installed; `pip install {name}` or remove it")
