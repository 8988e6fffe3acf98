"""The server that a command's run uses: why one of its own does not start, and another does not take the run."""

from __future__ import annotations

import atexit
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip.flows import own_server
from paraclip.flows.own_server import start_local_server
from paraclip_core.errors import StageError
from tests.kit.served import paraclip


@pytest.fixture
def server_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, str]]]:
    """Starts a server whose uvicorn is some lines of Python; what would end it at exit ends it after the test."""
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda end, *given: ends.append(lambda: end(*given)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(uvicorn: str) -> dict[str, str]:
        (tmp_path / "uvicorn.py").write_text(uvicorn)
        return start_local_server({})

    yield start
    for end in ends:
        end()


def test_the_end_of_its_log_is_shown(server_of: Callable[[str], Any]) -> None:
    with pytest.raises(StageError, match=r"(?s)ended with exit code 1.*RuntimeError: no sockets left"):
        server_of("raise RuntimeError('no sockets left')")


def test_one_that_is_too_slow_differs_from_one_that_ended(
    server_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_server, "START_SECONDS", 0.5)
    with pytest.raises(StageError, match=r"(?s)did not answer within 0.5 seconds.*nothing; is there"):
        server_of("import time\ntime.sleep(600)")


@pytest.mark.slow
def test_a_server_that_does_not_take_the_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog on a beach\n")
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{root: {tmp_path}, sources: [{{path: captions.txt}}]}}")
    with socket.socket() as nobody:
        # Bound and not listening: nobody else gets the port, and nobody answers.
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
        said = paraclip("run", "-c", config, "--root", tmp_path / "root", code=2, variables={"PREFECT_API_URL": url})
    assert f"error: the Prefect server {url} does not accept this run: Failed to reach API" in said
    assert "Traceback" not in said and "unset PREFECT_API_URL" in said
