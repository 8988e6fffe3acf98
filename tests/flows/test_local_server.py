"""A run's own Prefect server: what is said where it does not come up."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import local_server
from paraclip_core.errors import StageError


@pytest.fixture
def server_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, str]]]:
    """Starts a server whose uvicorn is some lines of Python; what would end it at exit ends it after the test."""
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda end, *given: ends.append(lambda: end(*given)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(uvicorn: str) -> dict[str, str]:
        (tmp_path / "uvicorn.py").write_text(uvicorn)
        return local_server.start_local_server({})

    yield start
    for end in ends:
        end()


def test_the_end_of_its_log_is_shown(server_of: Callable[[str], Any]) -> None:
    with pytest.raises(StageError, match=r"(?s)ended with exit code 1. End of its log:.*RuntimeError: no sockets left"):
        server_of("raise RuntimeError('no sockets left')")


def test_one_that_is_too_slow_is_told_from_one_that_ended(
    server_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "START_SECONDS", 0.5)
    with pytest.raises(StageError, match=r"(?s)did not answer within 0.5 seconds.*PREFECT_API_URL.*(nothing)"):
        server_of("import time\ntime.sleep(600)")
