"""The services of docker/compose.yaml as a separate project: start, ask and kill them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.processes import free_port
from tests.kit.served import ENDED, REPOSITORY, Api
from tests.kit.waiting import eventually

IMAGE = "paraclip-test"
"""The image, and the project, that tests build and remove."""
NEXT = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
"""What the UI's Retry button requests."""
SETTINGS: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text())
SETTINGS["data"]["root"] = "/data/demo-data"
SETTINGS["finetune"]["epochs"] = 1

KILL = "import os, signal, sys; os.kill(int(sys.argv[1]), signal.SIGKILL)"


class Compose(Api):
    """docker/compose.yaml, with the image and a port of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.password = free_port(), "Secret_1-x"
        super().__init__(f"http://localhost:{self.port}", f"admin:{self.password}")
        self.environment = dict(os.environ)
        compose = REPOSITORY / "docker" / "compose.yaml"
        services = yaml.safe_load(compose.read_text())["services"]
        ours: dict[str, Any] = {name: {"image": IMAGE} for name, service in services.items() if "build" in service}
        del ours["worker-gpu"]
        ours["server"]["ports"] = [f"127.0.0.1:{self.port}:4200"]
        overrides = folder / "overrides.yaml"
        # A list of ports would be added to the one that is there.
        overrides.write_text(yaml.safe_dump({"services": ours}).replace("ports:", "ports: !override"))
        self.files = ["-f", str(compose), "-f", str(overrides)]

    def compose(self, *arguments: str, seconds: float = 600, code: int = 0) -> str:
        """Run `docker compose` and return its output."""
        command = ["docker", "compose", "-p", IMAGE, *self.files, *arguments]
        environment = self.environment | {"PARACLIP_PASSWORD": self.password}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=seconds
        )
        assert done.returncode == code, "\n".join(done.stdout.splitlines()[-40:])
        return done.stdout

    def up(self, *arguments: str, seconds: float = 600) -> None:
        """Start what does not run; if that fails, the error has the logs of the unhealthy containers."""
        try:
            self.compose("up", "-d", *arguments, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.unwell()}") from None

    def unwell(self) -> str:
        """The last lines of every container that is unhealthy or ended with an error."""
        containers = [json.loads(line) for line in self.compose("ps", "-a", "--format", "json").splitlines()]
        names = [one["Service"] for one in containers if one["Health"] == "unhealthy" or one["ExitCode"]]
        return self.compose("logs", "--no-color", "--tail", "40", *names) if names else "all containers are well"

    def in_worker(self, *command: str, code: int = 0) -> str:
        return self.compose("exec", "-T", "worker-cpu", *command, code=code).strip()

    def inspect(self, name: str, template: str) -> str:
        """What the engine knows about a container."""
        command = ["docker", "inspect", "-f", template, f"{IMAGE}-{name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def crash(self, name: str) -> None:
        """Kill a container's first process, as a lack of memory would; Docker starts it again."""
        pid = self.inspect(name, "{{.State.Pid}}")
        # Unlike `docker kill`, which counts as a wish that it stay away.
        as_host = ["docker", "run", "--rm", "--pid", "host", "--user", "0", IMAGE]
        subprocess.run([*as_host, "python", "-c", KILL, pid], check=True)

    def answers(self) -> bool:
        """Whether the API answers and has its database; a client would ask again."""
        try:
            return bool(self.call("ready", patience=()))
        except OSError:
            return False

    def until(self, run: str, states: Sequence[str], seconds: float) -> float:
        """Wait for one of these states; returns how long it took."""
        start = time.monotonic()
        eventually(lambda: self._state(run) in states, lambda: f"not {states} but {self._state(run)}", seconds)
        return time.monotonic() - start

    def _state(self, run: str) -> str:
        try:
            return self.state(run)
        except OSError:
            return ""

    def complete(self, run: str, seconds: float = 1800) -> None:
        """Wait until it has completed."""
        self.until(run, ENDED, seconds)
        assert self.state(run) == "Completed", self.compose("logs", "--no-color", "worker-cpu")

    def retry(self, run: str) -> None:
        """Do what the Retry button does."""
        self.call(f"flow_runs/{run}/set_state", NEXT)

    def log(self) -> str:
        """The log of the worker and its runs."""
        return self.compose("logs", "--no-color", "worker-cpu")


def need_engine() -> None:
    """Skip the test if no Docker engine answers, or if it cannot get the image that ours is built on."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("no Docker engine answers on this machine")
    base = f"python:{os.environ.get('PYTHON', '3.12')}-slim"
    for command in ("image inspect", "pull"):
        if subprocess.run(["docker", *command.split(), base], capture_output=True).returncode == 0:
            return
    pytest.skip(f"the engine has no image {base} and reaches none")


@contextmanager
def composed(folder: Path) -> Iterator[Compose]:
    """Build and start everything, and remove it at the end."""
    need_engine()
    services = Compose(folder)
    try:
        services.up("--build", seconds=3600)
        write = "from pathlib import Path; from paraclip_core.demo.render import write_scenes; "
        services.in_worker("python", "-c", f"{write}write_scenes(Path('/data/demo-data'), images=60)")
        yield services
    finally:
        services.compose("down", "--volumes", "--remove-orphans")
