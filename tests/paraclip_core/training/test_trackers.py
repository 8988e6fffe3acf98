"""Curves in other tools: told everything, able to stop nothing."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, call

import pytest

from paraclip_core.errors import ConfigError
from paraclip_core.training import trackers as trackers_module
from paraclip_core.training.trackers import TrackedRun, Trackers
from paraclip_core.training.trainer import train


class Noted:
    """A tracker that keeps what it is told, and fails after `failing` steps."""

    told: dict[int, Mapping[str, float]]
    closed = False
    failing: float = math.inf

    def __init__(self, run: TrackedRun, step: int) -> None:
        type(self).told = {}

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if len(self.told) >= self.failing:
            raise OSError("no network")
        self.told[step] = {**self.told.get(step, {}), **figures}

    def close(self) -> None:
        type(self).closed = True


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> type[Noted]:
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: name)
    kind = type("OfATest", (Noted,), {})
    monkeypatch.setattr(trackers_module, "OPENERS", {"wandb": kind})
    return kind


def test_a_training_run_is_reported_to_each(tiny: ModuleType, tmp_path: Path, noted: type[Noted]) -> None:
    trackers = Trackers(["wandb", "wandb"], TrackedRun("r", tmp_path, {}))
    train(tiny.tiny_job(tmp_path, trackers=trackers, options={"epochs": 1.0}))
    assert list(noted.told) == [1, 2, 3, 4, 5] and noted.closed
    assert {"loss", "learning_rate", "losses/image~paraphrase_2"} <= set(noted.told[1])
    assert "validation/text_to_image_recall@10" in noted.told[5]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_reported(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    for steps in ((1, 2, 3), (3,)):  # a run that is resumed writes another file
        trackers = Trackers(["tensorboard"], TrackedRun("r", tmp_path, {"seed": 0}))
        trackers.begin(steps[0] - 1)
        for step in steps:
            trackers.log(step, {"loss": 1 / step})
        trackers.close()
    assert len(list((tmp_path / "tensorboard/r").iterdir())) == 2, "one file each"
    log = events.EventAccumulator(str(tmp_path / "tensorboard/r"))
    log.Reload()
    assert log.Tags()["tensors"] == ["options/text_summary"]
    assert [(event.step, round(event.value, 3)) for event in log.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333)]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_services_get_project_name_and_figures(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Mock()
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: name)
    trackers = Trackers([package], TrackedRun("r", tmp_path, {"seed": 0}))
    trackers.begin(6)
    trackers.log(7, {"loss": 0.5})
    trackers.close()
    assert module.init.call_args.kwargs.items() >= {"project": "paraclip", "name": "r", "config": {"seed": 0}}.items()
    assert module.mock_calls[1:] == [call.log({"loss": 0.5}, step=7), call.finish()]


def test_a_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="`pip install wandb` or remove it"):
        Trackers(["wandb"], TrackedRun("r", tmp_path, {}))


def test_a_failing_tracker_is_left_alone(tmp_path: Path, noted: type[Noted], caplog: pytest.LogCaptureFixture) -> None:
    noted.failing = 1
    trackers = Trackers(["wandb"], TrackedRun("r", tmp_path, {}))
    trackers.begin(0)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            trackers.log(step, {"loss": 1.0})
        trackers.close()
    assert list(noted.told) == [1] and not noted.closed
    assert caplog.text.count("tracker wandb failed") == 1 and "no network" in caplog.text
