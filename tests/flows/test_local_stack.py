"""The stack of `serve` and `stop`: what is started with what, and which processes are whose."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from paraclip.flows import local_stack
from paraclip.flows.local_stack import client_environment, password_file, processes_of, serve, stop
from paraclip.flows.names import MARK, POOLS
from paraclip_core.errors import ConfigError, StageError
from tests.kit.processes import free_port
from tests.kit.waiting import eventually


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} cannot be used .*--port"):
            serve(tmp_path, port, tmp_path)
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("password", ["secret", "admin:my secret"])
def test_a_password_that_nobody_could_log_in_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setattr(local_stack, "_start", lambda *_: pytest.fail("something was started"))
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", password)
    with pytest.raises(ConfigError, match="PREFECT_SERVER_API_AUTH_STRING must be USER:PASSWORD"):
        serve(tmp_path, free_port(), tmp_path)


class Refusal:
    """Takes the place of what starts a part, and keeps with what it would have been started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        monkeypatch.setattr(local_stack, "_start", self)

    def __call__(self, _root: Path, _name: str, command: list[str], environment: dict[str, str], *_: Any) -> None:
        self.commands.append(command)
        self.environments.append(environment)
        raise StageError("it does not start")

    def serve(self, root: Path, location: str | None = None) -> dict[str, str]:
        """The environment of the server that would have been started."""
        with pytest.raises(StageError):
            serve(root, free_port(), root, (), location)
        return self.environments[-1]


def test_a_server_gets_a_password_that_stays_and_that_nobody_else_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = Refusal(monkeypatch)
    servers = [refusal.serve(tmp_path, location) for location in (None, "s3://bucket/folder")]
    assert [one["PARACLIP_ROOT"] for one in servers] == [str(tmp_path), "s3://bucket/folder"]
    # Leases outlive the server.
    leases = servers[0]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert leases.endswith(".filesystem") and importlib.import_module(leases).ConcurrencyLeaseStorage
    assert servers[0]["PREFECT_HOME"].startswith(str(tmp_path))
    first, second = (one["PREFECT_SERVER_API_AUTH_STRING"] for one in servers)
    path = password_file(tmp_path)
    assert first == second == path.read_text().strip() and path.stat().st_mode & 0o777 == 0o600
    assert refusal.serve(tmp_path / "other")["PREFECT_SERVER_API_AUTH_STRING"] != first
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:own")
    own = refusal.serve(tmp_path)
    assert own["PREFECT_SERVER_API_AUTH_STRING"] == own["PREFECT_API_AUTH_STRING"] == "admin:own"
    assert path.read_text().strip() == first


def test_a_link_and_what_it_points_to_are_one_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, link = tmp_path / "root", tmp_path / "link"
    root.mkdir()
    link.symlink_to(root)
    environment = Refusal(monkeypatch).serve(link)
    assert environment[MARK] == environment["PARACLIP_ROOT"] == str(root)
    with Marked(root) as marked:
        marked.start("-m", "paraclip.flows.server", "start", "--port", "1")
        assert [process.name for process in processes_of(link)] == ["server"]
        assert client_environment(link)["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def test_what_a_killed_server_has_left_gets_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it looks for it, whatever port and password are given now."""
    refusal = Refusal(monkeypatch)
    with Marked(tmp_path, free_port()) as marked:
        worker = marked.start("-m", "prefect", "worker", "start", "--pool", POOLS[0], "--name", "x")
        run = marked.start()
        given = refusal.serve(tmp_path)
        command = ["paraclip.flows.server", "start", "--host", "127.0.0.1", "--port", str(marked.port)]
        assert refusal.commands == [command]
        assert {name: given[name] for name in marked.client} == marked.client
        assert given["PREFECT_SERVER_API_AUTH_STRING"] == marked.client["PREFECT_API_AUTH_STRING"]
        assert worker.poll() is run.poll() is None

        monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:another")
        with pytest.raises(ConfigError, match="not the password of the running server; `paraclip stop`"):
            serve(tmp_path, free_port(), tmp_path)
        monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING")
        with socket.socket() as other:
            other.bind(("127.0.0.1", marked.port))
            other.listen()
            with pytest.raises(ConfigError, match=rf"port {marked.port} cannot be used .*`paraclip stop`"):
                serve(tmp_path, free_port(), tmp_path)


class Marked:
    """Processes that carry the mark of a stack, as its parts and what they start do."""

    def __init__(self, root: Path, port: int = 1) -> None:
        self.port = port
        self.client = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_API_AUTH_STRING": "admin:marked"}
        self.environment = {**os.environ, MARK: str(root), **self.client}
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
            process.communicate()

    def start(self, *arguments: str, deaf: bool = False, mark: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DEAF if deaf else SLEEP, *arguments]
        environment = {**self.environment, MARK: mark or self.environment[MARK]}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        self.started.append(process)
        assert process.stdout is not None and process.stdout.readline(), "it does not start"
        return process


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Marked]:
    with Marked(tmp_path) as processes:
        yield processes


SLEEP = "import time; print(flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@pytest.mark.parametrize("proc", ["/proc", "/nowhere"], ids=["proc", "ps"])
def test_what_serve_started_is_ended_and_nothing_else(
    tmp_path: Path, marked: Marked, monkeypatch: pytest.MonkeyPatch, proc: str
) -> None:
    if (not Path(proc).is_dir() and proc == "/proc") or shutil.which("ps") is None:
        pytest.skip("this system does not say what its processes were started with")
    monkeypatch.setattr(local_stack, "PROC", Path(proc))
    monkeypatch.setattr(local_stack, "STOP_SECONDS", 0.5)
    assert client_environment(tmp_path) == {} and stop(tmp_path) == []
    server = marked.start("-m", "paraclip.flows.server", "start", "--port", "1")
    worker = marked.start("-m", "prefect", "worker", "start", "--pool", POOLS[0], "--name", "x", deaf=True)
    run = marked.start()
    other = marked.start(mark=f"{tmp_path}-other")
    eventually(lambda: len(processes_of(tmp_path)) == 3)
    assert {(process.name, process.pid) for process in processes_of(tmp_path)} == {
        ("server", server.pid),
        (POOLS[0], worker.pid),
        ("", run.pid),
    }
    assert client_environment(tmp_path) == marked.client
    assert sorted(stop(tmp_path)) == [POOLS[0], "server"]
    assert [process.wait() for process in (server, worker, run)] == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGKILL]
    assert other.poll() is None and processes_of(tmp_path) == []
