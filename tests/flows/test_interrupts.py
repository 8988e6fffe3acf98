"""Ctrl-C, SIGTERM and SIGKILL of a running `paraclip run`: it ends at once and leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paraclip.flows.local_stack import client_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def marked(mark: str) -> list[str]:
    """Command lines of living processes whose environment has the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PARACLIP_TEST={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [command for command in found if command]


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -signal.SIGKILL)],
)
def test_it_ends_at_once_and_leaves_nothing(tmp_path: Path, number: int, whole_group: bool, code: int) -> None:
    mark = tmp_path.name
    options = ["data.scenes.images=50000", "data.sources.0.path=captions.jsonl", f"run.root={tmp_path / 'root'}"]
    run = subprocess.Popen(
        [sys.executable, "-m", "paraclip.flows.cli", "run", *(part for text in options for part in ("--set", text))],
        env={**os.environ, "PARACLIP_TEST": mark},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert run.stderr is not None
        assert "scenes" in run.stderr.readline()
        deadline = time.monotonic() + 120
        while not any("paraclip.tasks.run.child" in command for command in marked(mark)):
            assert time.monotonic() < deadline, "the stage got no process"
            time.sleep(0.05)
        # As a terminal does with Ctrl-C: every process of the group gets it.
        (os.killpg if whole_group else os.kill)(run.pid, number)
        _, rest = run.communicate(timeout=120)
    finally:
        run.kill()
        run.wait()
        # A pipe left to the garbage collector fails whichever test it comes round in.
        if run.stderr is not None:
            run.stderr.close()
    assert run.returncode == code
    assert "Traceback" not in rest
    deadline = time.monotonic() + 120
    while marked(mark):
        assert time.monotonic() < deadline, marked(mark)
        time.sleep(0.05)


def test_serve_that_is_ended_midway_ends_what_it_has_started(tmp_path: Path) -> None:
    mark, root = tmp_path.name, tmp_path / "root"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "paraclip.flows.cli", "serve", "--root", str(root), "--port", port]
    serving = subprocess.Popen(command, env={**os.environ, "PARACLIP_TEST": mark}, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not client_environment(root):
            assert time.monotonic() < deadline, "no server was started"
            time.sleep(0.05)
        serving.terminate()
        assert serving.wait(120) == 143
    finally:
        serving.kill()
        serving.wait()
    assert marked(mark) == []
