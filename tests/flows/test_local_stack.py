"""The stack of `serve`: what it starts, with what, and what it refuses before."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paraclip.flows.local_stack import password_file
from paraclip_core.errors import StageError
from tests.kit.processes import free_port

OWN = "PREFECT_SERVER_API_AUTH_STRING"
REFUSE = """
import json, os, sys
if sys.orig_argv[1:3] == ["-P", "-c"]:
    with open(__file__ + ".started", "w") as file:
        json.dump([sys.orig_argv[5:], dict(os.environ)], file)
    os._exit(9)
"""
SERVE = """
import sys
from pathlib import Path
from paraclip.flows.cli import run_cli
sys.exit(run_cli(["serve", "--root", sys.argv[1], "--port", sys.argv[2]]))
"""
Serve = Callable[..., tuple[str, list[str], dict[str, str]]]


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serves while no part starts; gives the error, and the command and the environment of the server."""
    module = tmp_path_factory.mktemp("path") / "sitecustomize.py"
    module.write_text(REFUSE)

    def server(root: Path, port: int | None = None, **variables: str) -> tuple[str, list[str], dict[str, str]]:
        path = os.pathsep.join(filter(None, [str(module.parent), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-c", SERVE, str(root), str(port or free_port())]
        environment = {**os.environ, "PYTHONPATH": path, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        started = module.with_name(f"{module.name}.started")
        assert done.returncode == (StageError.exit_code if started.exists() else 2), done.stderr
        arguments, given = json.loads(started.read_text()) if started.exists() else ([], {})
        started.unlink(missing_ok=True)
        return done.stderr, arguments, given

    return server


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path: Path, serve: Serve) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        error, started, _ = serve(tmp_path, port)
    assert f"port {port} cannot be used" in error and "--port" in error and not started
    for password in ("secret", "admin:my secret"):
        error, started, _ = serve(tmp_path, **{OWN: password})
        assert f"{OWN} must be USER:PASSWORD" in error and not started


def test_a_server_gets_a_password_that_stays_and_that_nobody_else_reads(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    error, command, here = serve(tmp_path / "link")
    assert "the Prefect server ended with exit code 9" in error
    assert command[:2] == ["paraclip.flows.server", "start"]
    # Leases outlive the server.
    leases = here["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert leases.endswith(".filesystem") and importlib.import_module(leases).ConcurrencyLeaseStorage
    assert here["PREFECT_HOME"] == str(tmp_path / "root" / "prefect" / "server")
    path = password_file(tmp_path / "root")
    assert here[OWN] == path.read_text().strip() and path.stat().st_mode & 0o777 == 0o600
    assert serve(tmp_path / "root")[2][OWN] == here[OWN] != serve(tmp_path / "other")[2][OWN]
    own = serve(tmp_path / "root", **{OWN: "admin:own"})[2]
    assert own[OWN] == own["PREFECT_API_AUTH_STRING"] == "admin:own" and path.read_text().strip() == here[OWN]
