"""What goes wrong around `paraclip serve` and `paraclip stop` is said, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paraclip.flows.local_stack import processes_of
from tests.kit.processes import command_of, free_port
from tests.kit.served import Api, of_stack, paraclip, serving
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
def stack(root: Path, folder: Path, captions: int = 5_000_000) -> Iterator[Api]:
    """A stack with a stage that takes minutes, one run at a time."""
    with (folder / "captions.txt").open("w") as file:
        file.writelines(f"a dog beside tree {number}\n" for number in range(captions))
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    with serving(root, folder, {"name": "long", "data": data}) as api:
        deployment, limit = api.deployment("ingest"), {"concurrency_limit": 1}
        api.prefect("api", "PATCH", f"/deployments/{deployment}", "--data", json.dumps(limit))
        yield api


def serve_again(root: Path, folder: Path) -> str:
    return paraclip("serve", "--root", root, "--port", free_port(), "--folder", folder)


def pids(root: Path) -> dict[str, int]:
    return {process.name: process.pid for process in processes_of(root) if process.name}


def test_a_run_outlives_its_killed_server_and_gets_it_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with stack(root, tmp_path, captions=2_000_000) as api:
        run = api.run_deployment("ingest")
        (child,) = eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the stage has no process")
        before = pids(root)
        os.kill(before["server"], signal.SIGKILL)
        eventually(lambda: not command_of(before["server"]), "the server does not end")
        output = serve_again(root, tmp_path)
        assert f"starting it again at {api.url}" in output and of_stack(root, "paraclip.tasks.run.child") == [child]
        assert {**pids(root), "server": before["server"]} == before
        eventually(lambda: api.state(run) not in ("Running", "Pending"), "the run does not end")
        assert api.state(run) == "Completed" and api.call(f"flow_runs/{run}")["run_count"] == 1


def test_a_killed_worker_and_a_killed_server(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with stack(root, tmp_path) as api:
        run = api.run_deployment("ingest")
        eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the stage has no process")
        os.kill(pids(root)["paraclip-cpu"], signal.SIGKILL)
        os.kill(pids(root)["server"], signal.SIGKILL)
        output = paraclip("stop", "--root", root)
        assert set(output.split("ended: ")[1].strip().split(", ")) == {"pages", "paraclip-gpu"}
        eventually(lambda: not of_stack(root), "the run outlived its local stack", 10)
        assert "nothing runs" in paraclip("stop", "--root", root)

    with stack(root, tmp_path) as api:
        eventually(lambda: api.state(run) == "Crashed", "what was cut off is not marked", MARKED_SECONDS)
        again = api.run_deployment("ingest")
        eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the crashed run still holds the only slot")
        paraclip("stop", "--root", root)
        eventually(lambda: not of_stack(root), "the run outlived its local stack", 10)
    with stack(root, tmp_path) as api:
        eventually(lambda: api.state(again) == "Crashed", "what was cut off is not marked", MARKED_SECONDS)
