"""Curves in other tools: told everything, able to stop nothing."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from paraclip_core.errors import ConfigError
from paraclip_core.training.trackers import TrackedRun, Trackers, open_trackers
from paraclip_core.training.trainer import train


def test_a_training_run_is_told_to_each(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file/r.jsonl").write_text('{"step": 2, "loss": 3.0}\n')  # of a run that was killed too early
    trackers = open_trackers(["file", "file"], TrackedRun("r", tmp_path, {}))
    train(tiny.tiny_job(tmp_path, trackers=trackers))
    lines = [json.loads(line) for line in (tmp_path / "file/r.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 46))
    assert {"loss", "learning_rate", "losses/image~paraphrase_2"} <= set(lines[0])
    assert any("validation/text_to_image_recall@10" in line for line in lines)


def test_a_file_has_each_step_once_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "file/r.jsonl"

    def told() -> list[int]:
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    killed = open_trackers(["file"], TrackedRun("r", tmp_path, {}))
    killed.begin(0)
    for step in (1, 2, 3, 3, 4):
        killed.log(step, {"loss": 1.0})
    assert told() == [1, 2, 3, 3, 4], "a kill takes nothing away"
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    resumed = open_trackers(["file"], TrackedRun("r", tmp_path, {}))
    resumed.begin(3)
    resumed.log(4, {"loss": 0.5})
    assert told() == [1, 2, 3, 3, 4] and '{"step": 4, "loss": 0.5}' in path.read_text()
    killed.close()
    resumed.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    for steps in ((1, 2, 3), (3,)):  # a run that is resumed writes another file
        trackers = open_trackers(["tensorboard"], TrackedRun("r", tmp_path, {"seed": 0}))
        trackers.begin(steps[0] - 1)
        for step in steps:
            trackers.log(step, {"loss": 1 / step})
        trackers.close()
    assert len(list((tmp_path / "tensorboard/r").iterdir())) == 2, "one file each"
    found = events.EventAccumulator(str(tmp_path / "tensorboard/r"))
    found.Reload()
    assert found.Tags()["tensors"] == ["options/text_summary"]
    assert [(event.step, round(event.value, 3)) for event in found.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333)]


def test_a_tracker_opens_one_event_file_and_only_once_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []

    def writer(folder: str, **more: Any) -> SimpleNamespace:
        assert folder == str(tmp_path / "tensorboard/r")
        opened.append(more)
        return SimpleNamespace(add_text=lambda *_: None, add_scalar=lambda *_: None, close=lambda: None)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))
    trackers = open_trackers(["tensorboard"], TrackedRun("r", tmp_path, {"seed": 0}))
    assert opened == []
    trackers.begin(4)
    trackers.log(5, {"loss": 0.5})
    trackers.close()
    assert opened == [{"purge_step": 5}]
    open_trackers(["tensorboard"], TrackedRun("r", tmp_path, {})).close()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_services_get_project_name_and_figures(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def noted(name: str) -> Any:
        return lambda *args, **named: calls.append((name, {**named, "args": args}))

    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{n: noted(n) for n in ("init", "log", "finish")}))
    trackers = open_trackers([package], TrackedRun("r", tmp_path, {"seed": 0}))
    trackers.log(7, {"loss": 0.5})
    trackers.close()
    assert [name for name, _ in calls] == ["init", "log", "finish"]
    assert (calls[0][1]["project"], calls[0][1]["name"], calls[0][1]["config"]) == ("paraclip", "r", {"seed": 0})
    assert calls[1][1] == {"args": ({"loss": 0.5},), "step": 7}


RESUMED = """
import sys
from pathlib import Path
from paraclip_core.training.trackers import TrackedRun, open_trackers
for steps in ((1, 2), (3,)):
    trackers = open_trackers([sys.argv[1]], TrackedRun("r", Path(sys.argv[2]), {"seed": 0}))
    for step in steps:
        trackers.log(step, {"loss": 1 / step})
    trackers.close()
"""


def resumed_with(package: str, folder: Path) -> None:
    """A run that is resumed tells the installed package, in a process of its own, without a network."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package}")
    apart = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder)}
    command = [sys.executable, "-c", RESUMED, package, str(folder)]
    done = subprocess.run(command, env=os.environ | apart, capture_output=True, text=True, check=True)
    assert "is left alone" not in done.stderr


def test_trackio_goes_on_with_the_run(tmp_path: Path) -> None:
    resumed_with("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "paraclip.db") as database:
        told = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    database.close()
    assert [(name, step, json.loads(figures)["loss"]) for name, step, figures in told] == [
        ("r", step, 1 / step) for step in (1, 2, 3)
    ]


def test_wandb_keeps_the_run_for_later_without_a_network(tmp_path: Path) -> None:
    resumed_with("wandb", tmp_path)
    parts = sorted((tmp_path / "wandb").glob("offline-run-*-r/run-r.wandb"))
    assert sum(part.read_bytes().count(b"loss") for part in parts) >= 3


def test_a_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="`pip install wandb` or take it out"):
        open_trackers(["wandb"], TrackedRun("r", tmp_path, {}))


def test_a_tracker_that_fails_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    class Broken:
        def begin(self, step: int) -> None:
            pass

        def log(self, step: int, figures: Mapping[str, float]) -> None:
            told.append(step)
            raise OSError("no network")

        def close(self) -> None:
            raise AssertionError("it was left alone")

    trackers = Trackers({"broken": Broken()})
    with caplog.at_level(logging.WARNING):
        trackers.log(1, {})
        trackers.log(2, {})
        trackers.close()
    assert told == [1] and "tracker broken failed" in caplog.text and "no network" in caplog.text
