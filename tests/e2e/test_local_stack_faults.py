"""What goes wrong around `paraclip serve` and `paraclip stop` is said, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import yaml
from served import Api, command_of, environment_of, free_port, paraclip, processes, serving
from waiting import eventually  # pyright: ignore[reportMissingImports]

from paraclip.flows.local_stack import processes_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

MARKED_SECONDS = 120
"""How long after a start a run may seem to work that has nothing behind it."""
REPOSITORY = Path(__file__).parents[2]


def long_scenes(path: Path, root: Path, images: int = 20_000) -> Path:
    """One deployment, of a stage that takes minutes, one run at a time."""
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    scenes = next(d for d in declared["deployments"] if d["name"] == "scenes")
    data = {"scenes": {"images": images}, "sources": [{"path": "captions.jsonl", "images": "images.tar"}]}
    scenes["parameters"] = {"settings": {"name": "long", "data": data, "run": {"root": str(root)}}}
    scenes["concurrency_limit"] = {"limit": 1, "collision_strategy": "ENQUEUE"}
    path.write_text(yaml.safe_dump(declared | {"deployments": [scenes]}))
    return path


def start_long_run(api: Api) -> str:
    deployment = api.call("deployments/name/scenes/scenes")
    return api.call(f"deployments/{deployment['id']}/create_flow_run", {})["id"]


def of_stack(root: Path, part: str = "") -> list[int]:
    """Processes below this root whose command line has `part`."""
    return [
        pid for pid in processes() if part in command_of(pid) and environment_of(pid).get("PARACLIP_ROOT") == str(root)
    ]


def pids(root: Path) -> dict[str, int]:
    return {process.name: process.pid for process in processes_of(root) if process.name}


def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = paraclip("serve", "--root", tmp_path, "--port", port, code=2)
    assert f"port {port} cannot be used" in said and "--port" in said
    assert not of_stack(tmp_path) and "nothing runs" in paraclip("stop", "--root", tmp_path)


def test_a_dead_worker_is_started_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    deployments = long_scenes(tmp_path / "prefect.yaml", root)
    with serving(root, tmp_path, deployments) as api:
        before = pids(root)
        os.kill(before["paraclip-cpu"], signal.SIGKILL)
        eventually(lambda: not command_of(before["paraclip-cpu"]), "the worker does not end")
        said = paraclip(
            "serve", "--root", root, "--port", free_port(), "--folder", tmp_path, "--prefect-file", deployments
        )
        after = pids(root)
        assert api.url in said and after["paraclip-cpu"] != before["paraclip-cpu"]
        assert {name: after[name] for name in ("server", "paraclip-gpu")} == {
            name: before[name] for name in ("server", "paraclip-gpu")
        }
        start_long_run(api)
        eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the new worker takes no run")


def test_a_run_outlives_its_killed_server_and_gets_it_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    deployments = long_scenes(tmp_path / "prefect.yaml", root, images=4_000)
    with serving(root, tmp_path, deployments) as api:
        run = start_long_run(api)
        (child,) = eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the stage has no process")
        before = pids(root)
        os.kill(before["server"], signal.SIGKILL)
        eventually(lambda: not command_of(before["server"]), "the server does not end")
        said = paraclip(
            "serve", "--root", root, "--port", free_port(), "--folder", tmp_path, "--prefect-file", deployments
        )
        assert f"started again at {api.url}" in said and of_stack(root, "paraclip.tasks.run.child") == [child]
        assert {**pids(root), "server": before["server"]} == before
        eventually(lambda: api.state(run) not in ("Running", "Pending"), "the run does not end")
        assert api.state(run) == "Completed" and api.call(f"flow_runs/{run}")["run_count"] == 1


def test_a_killed_worker_and_a_killed_server(tmp_path: Path) -> None:
    root = tmp_path / "root"
    deployments = long_scenes(tmp_path / "prefect.yaml", root)
    with serving(root, tmp_path, deployments) as api:
        run = start_long_run(api)
        eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the stage has no process")
        os.kill(pids(root)["paraclip-cpu"], signal.SIGKILL)
        os.kill(pids(root)["server"], signal.SIGKILL)
        said = paraclip("stop", "--root", root)
        assert set(said.split("ended: ")[1].strip().split(", ")) == {"pages", "paraclip-gpu"}
        eventually(lambda: not of_stack(root), "the run outlived its local stack", 10)
        assert "nothing runs" in paraclip("stop", "--root", root)

    with serving(root, tmp_path, deployments) as api:
        eventually(lambda: api.state(run) == "Crashed", "what was cut off is not marked", MARKED_SECONDS)
        again = start_long_run(api)
        eventually(lambda: of_stack(root, "paraclip.tasks.run.child"), "the crashed run still holds the only slot")
        paraclip("stop", "--root", root)
        eventually(lambda: not of_stack(root), "the run outlived its local stack", 10)
    with serving(root, tmp_path, deployments) as api:
        eventually(lambda: api.state(again) == "Crashed", "what was cut off is not marked", MARKED_SECONDS)
