"""Ctrl-C, SIGTERM and SIGKILL of a running `paraclip run`: it ends at once and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.kit.processes import free_port, with_variable
from tests.kit.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


marked = partial(with_variable, "PARACLIP_TEST")


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [
        (signal.SIGINT, True, 130),
        pytest.param(signal.SIGTERM, False, 143, marks=pytest.mark.nightly),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_it_ends_at_once_and_leaves_nothing(tmp_path: Path, number: int, whole_group: bool, code: int) -> None:
    mark = tmp_path.name
    (tmp_path / "captions.txt").write_text("".join(f"a dog beside tree {number}\n" for number in range(1_000_000)))
    options = [f"data.sources.0.path={tmp_path / 'captions.txt'}", f"run.root={tmp_path / 'root'}"]
    run = subprocess.Popen(
        [sys.executable, "-m", "paraclip.flows.cli", "run", *(part for text in options for part in ("--set", text))],
        env={**os.environ, "PARACLIP_TEST": mark},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert run.stderr is not None
        assert "ingest" in run.stderr.readline()
        eventually(lambda: marked(mark, "paraclip.tasks.run.child"), "the stage got no process")
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
    assert "Traceback" not in rest and "prefect" not in rest.lower()
    eventually(lambda: not marked(mark), "a process stays")


def test_serve_that_is_ended_midway_ends_what_it_has_started(tmp_path: Path) -> None:
    mark, root = tmp_path.name, tmp_path / "root"
    command = [sys.executable, "-m", "paraclip.flows.cli", "serve", "--root", str(root), "--port", str(free_port())]
    serving = subprocess.Popen(command, env={**os.environ, "PARACLIP_TEST": mark}, start_new_session=True)
    try:
        eventually(lambda: marked(mark, "paraclip.flows.server"), "no server was started")
        serving.terminate()
        assert serving.wait(120) == 143
    finally:
        serving.kill()
        serving.wait()
    assert marked(mark) == []
