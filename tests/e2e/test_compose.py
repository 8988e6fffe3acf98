"""The images and docker/compose.yaml, built and run: needs a Docker engine, its images and a package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import Api, free_port
from waiting import eventually  # pyright: ignore[reportMissingImports]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker engine on this machine"),
]

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "Secret_1-x"
PROJECT = "paraclip-test"


class Compose(Api):
    """The services of docker/compose.yaml as a project of their own, on a port that was free."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        super().__init__(f"http://127.0.0.1:{port}", f"admin:{PASSWORD}")
        ours: dict[str, Any] = {name: {"image": PROJECT} for name in ("setup", "worker-cpu")}
        ours["server"] = {"image": PROJECT, "ports": [f"127.0.0.1:{port}:4200"]}
        self.overrides = folder / "overrides.yaml"
        # A list of ports would be added to the one that is there.
        self.overrides.write_text(yaml.safe_dump({"services": ours}).replace("ports:", "ports: !override"))

    def compose(self, *arguments: str, seconds: float = 600) -> str:
        files = ["-f", str(REPOSITORY / "docker" / "compose.yaml"), "-f", str(self.overrides)]
        done = subprocess.run(
            ["docker", "compose", "-p", PROJECT, *files, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PARACLIP_PASSWORD": PASSWORD},
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def in_worker(self, *command: str) -> str:
        return self.compose("exec", "-T", "worker-cpu", *command).strip()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    if subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("the Docker engine does not answer")
    services = Compose(tmp_path_factory.mktemp("compose"))
    try:
        services.compose("up", "-d", "--build", seconds=3600)
        yield services
    finally:
        services.compose("down", "--volumes")


def settings() -> dict[str, Any]:
    demo = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text())
    demo["data"]["scenes"] = {"images": 60}
    demo["finetune"]["epochs"] = 1
    return demo


def test_the_pages_are_there_and_the_api_wants_the_password(services: Compose) -> None:
    with urllib.request.urlopen(f"{services.url}/", timeout=60) as page:
        assert "html" in page.headers["Content-Type"]
    assert services.call("admin/version")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Api(services.url).call("admin/version")


def test_nothing_runs_as_root(services: Compose) -> None:
    assert services.in_worker("id", "-u") == "1000"
    assert services.in_worker("stat", "-c", "%U", "/data") == "paraclip"


def test_a_run_ends_well_and_outlives_its_containers(services: Compose) -> None:
    run = services.run_deployment("pipeline", settings())
    ended = ("Completed", "Failed", "Crashed", "Cancelled")
    eventually(lambda: services.state(run) in ended, "the run did not end", 1800)
    assert services.state(run) == "Completed", services.compose("logs", "worker-cpu")
    services.compose("down")
    services.compose("up", "-d")
    assert services.state(run) == "Completed"
    again = services.run_deployment("pipeline", settings())
    eventually(lambda: services.state(again) in ended, "the run did not end", 300)
    assert services.state(again) == "Completed"
    log = services.compose("logs", "worker-cpu")
    assert "starts in process" not in log and " made in " not in log, "what was finished was made again"
