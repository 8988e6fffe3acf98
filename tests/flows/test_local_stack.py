"""The stack of `serve` and `stop`: what is started with what, and which processes are whose."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from paraclip.flows import local_stack
from paraclip.flows.local_stack import client_environment, password_file, processes_of, serve, stop
from paraclip.flows.names import MARK, POOLS
from paraclip_core.errors import ConfigError, StageError
from tests.kit.processes import free_port
from tests.kit.waiting import eventually

OWN = "PREFECT_SERVER_API_AUTH_STRING"
Serve = Callable[..., tuple[list[str], dict[str, str]]]


@contextmanager
def taken(port: int = 0) -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        yield other.getsockname()[1]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with taken() as port, pytest.raises(ConfigError, match=rf"port {port} cannot be used .*--port"):
        serve(tmp_path, port, tmp_path)
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("password", ["secret", "admin:my secret"])
def test_a_password_that_nobody_could_log_in_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv(OWN, password)
    with pytest.raises(ConfigError, match=f"{OWN} must be USER:PASSWORD"):
        serve(tmp_path, free_port(), tmp_path)
    assert not (tmp_path / "logs").exists(), "something was started"


REFUSE = """
import json, os, sys
if sys.orig_argv[1:3] == ["-P", "-m"]:
    with open(__file__ + ".started", "w") as file:
        json.dump([sys.orig_argv[3:], dict(os.environ)], file)
    os._exit(9)
"""


@pytest.fixture
def refused(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves while no part starts; gives the command and the environment of the server."""
    module = tmp_path_factory.mktemp("path") / "sitecustomize.py"
    module.write_text(REFUSE)
    monkeypatch.setenv("PYTHONPATH", str(module.parent))

    def server(root: Path, location: str | None = None) -> tuple[list[str], dict[str, str]]:
        with pytest.raises(StageError, match="ended with exit code 9"):
            serve(root, free_port(), root.parent, (), location)
        return json.loads(module.with_name(f"{module.name}.started").read_text())

    return server


def test_a_server_gets_a_password_that_stays_and_that_nobody_else_reads(
    tmp_path: Path, refused: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, here), (_, there) = (refused(tmp_path, location) for location in (None, "s3://bucket/folder"))
    assert (here["PARACLIP_ROOT"], there["PARACLIP_ROOT"]) == (str(tmp_path), "s3://bucket/folder")
    # Leases outlive the server.
    leases = here["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert leases.endswith(".filesystem") and importlib.import_module(leases).ConcurrencyLeaseStorage
    assert here["PREFECT_HOME"].startswith(str(tmp_path))
    path = password_file(tmp_path)
    assert here[OWN] == there[OWN] == path.read_text().strip() and path.stat().st_mode & 0o777 == 0o600
    assert refused(tmp_path / "other")[1][OWN] != here[OWN]
    monkeypatch.setenv(OWN, "admin:own")
    _, own = refused(tmp_path)
    assert own[OWN] == own["PREFECT_API_AUTH_STRING"] == "admin:own"
    assert path.read_text().strip() == here[OWN]


class Marked(ExitStack):
    """Processes that carry the mark of a stack, as its parts and what they start do."""

    def __init__(self, root: Path, port: int = 1) -> None:
        super().__init__()
        self.client = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_API_AUTH_STRING": "admin:marked"}
        self.environment = {**os.environ, MARK: str(root), **self.client}

    def start(self, *arguments: str, before: str = "pass", mark: str = "") -> subprocess.Popen[bytes]:
        """Start what sleeps, after some lines of Python."""
        command = [sys.executable, "-c", f"{before}; import time; print(flush=True); time.sleep(600)", *arguments]
        environment = {**self.environment, MARK: mark or self.environment[MARK]}
        process = self.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        self.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline(), "it does not start"
        return process

    def server(self) -> subprocess.Popen[bytes]:
        return self.start("-m", "paraclip.flows.server", "start", "--port", "1")

    def worker(self, before: str = "pass") -> subprocess.Popen[bytes]:
        return self.start("-m", "prefect", "worker", "start", "--pool", POOLS[0], "--name", "x", before=before)


def test_a_link_and_what_it_points_to_are_one_stack(tmp_path: Path, refused: Serve) -> None:
    root, link = tmp_path / "root", tmp_path / "link"
    root.mkdir()
    link.symlink_to(root)
    _, environment = refused(link)
    assert environment[MARK] == environment["PARACLIP_ROOT"] == str(root)
    with Marked(root) as marked:
        marked.server()
        assert [process.name for process in processes_of(link)] == ["server"]
        assert client_environment(link)["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def test_what_a_killed_server_has_left_gets_it_back(
    tmp_path: Path, refused: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it looks for it, whatever port and password are given now."""
    port = free_port()
    with Marked(tmp_path, port) as marked:
        left = marked.worker(), marked.start()
        command, given = refused(tmp_path)
        assert command == ["paraclip.flows.server", "start", "--host", "127.0.0.1", "--port", str(port)]
        assert {name: given[name] for name in marked.client} == marked.client
        assert given[OWN] == marked.client["PREFECT_API_AUTH_STRING"]
        assert [process.poll() for process in left] == [None, None]

        with taken(port), pytest.raises(ConfigError, match=rf"port {port} cannot be used .*`paraclip stop`"):
            serve(tmp_path, free_port(), tmp_path)
        monkeypatch.setenv(OWN, "admin:another")
        with pytest.raises(ConfigError, match="not the password of the running server; `paraclip stop`"):
            serve(tmp_path, free_port(), tmp_path)


@pytest.mark.parametrize("proc", ["/proc", "/nowhere"], ids=["proc", "ps"])
def test_what_serve_started_is_ended_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proc: str
) -> None:
    if (not Path(proc).is_dir() and proc == "/proc") or shutil.which("ps") is None:
        pytest.skip("this system does not say what its processes were started with")
    monkeypatch.setattr(local_stack, "PROC", Path(proc))
    monkeypatch.setattr(local_stack, "STOP_SECONDS", 0.5)
    assert client_environment(tmp_path) == {} and stop(tmp_path) == []
    with Marked(tmp_path) as marked:
        server, run, other = marked.server(), marked.start(), marked.start(mark=f"{tmp_path}-other")
        worker = marked.worker("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
        ours = {("server", server.pid), (POOLS[0], worker.pid), ("", run.pid)}
        eventually(lambda: {(process.name, process.pid) for process in processes_of(tmp_path)} == ours)
        assert client_environment(tmp_path) == marked.client
        assert sorted(stop(tmp_path)) == [POOLS[0], "server"]
        codes = [process.wait() for process in (server, worker, run)]
        assert codes == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGKILL]
        assert other.poll() is None and processes_of(tmp_path) == []
