"""A part of `paraclip serve` that dies ends the whole, and what was cut off is marked by the next one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paraclip.flows.cli import INTERRUPTED
from paraclip_core.errors import StageError
from tests.kit.processes import command_of
from tests.kit.served import Api, of_stack, serving
from tests.kit.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

MARKED_SECONDS = 120
"""How long after a start a run may seem to work that has nothing behind it."""


@contextmanager
def stack(root: Path, folder: Path, code: int = INTERRUPTED, captions: int = 5_000_000) -> Iterator[Api]:
    """A stack with a stage that takes minutes, one run at a time; with a code, it ends by itself."""
    with (folder / "captions.txt").open("w") as file:
        file.writelines(f"a dog beside tree {number}\n" for number in range(captions))
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    with serving(root, folder, {"name": "long", "data": data}, code=code) as api:
        deployment, limit = api.deployment("ingest"), {"concurrency_limit": 1}
        api.prefect("api", "PATCH", f"/deployments/{deployment}", "--data", json.dumps(limit))
        yield api


def stage_of(root: Path) -> int:
    """The process of the stage that runs."""
    (pid,) = eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the stage has no process")
    return pid


def test_a_run_outlives_its_killed_server_and_gets_it_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with stack(root, tmp_path, StageError.exit_code, captions=2_000_000) as api:
        run, stage = api.run_deployment("ingest"), stage_of(root)
        # So that no worker ends the run.
        for pid in (*of_stack(root, "paraclip-cpu"), *of_stack(root, "paraclip.flows.server")):
            os.kill(pid, signal.SIGKILL)
    assert command_of(stage)
    with serving(root, tmp_path, port=int(api.url.rpartition(":")[2])):
        eventually(lambda: api.state(run) not in ("Running", "Pending"), "the run does not end")
        assert api.state(run) == "Completed" and api.call(f"flow_runs/{run}")["run_count"] == 1


def test_what_was_cut_off_is_marked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with stack(root, tmp_path, StageError.exit_code) as api:
        run, stage = api.run_deployment("ingest"), stage_of(root)
        (server,) = of_stack(root, "paraclip.flows.server")
        os.kill(server, signal.SIGKILL)
    eventually(lambda: not command_of(stage), "the run outlived its stack", 10)
    with stack(root, tmp_path) as api:
        eventually(lambda: api.state(run) == "Crashed", "what was cut off is not marked", MARKED_SECONDS)
        again = api.run_deployment("ingest")
        stage = stage_of(root)
    eventually(lambda: not command_of(stage), "the run outlived its stack", 10)
    with stack(root, tmp_path) as api:
        eventually(lambda: api.state(again) == "Crashed", "what was cut off is not marked", MARKED_SECONDS)
