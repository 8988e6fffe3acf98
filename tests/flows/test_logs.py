"""What becomes of a flow run's console lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = """
import logging, sys
from prefect.logging.configuration import setup_logging
setup_logging()
import paraclip.flows.stages  # every flow's module imports it
sys.stdin.readline()
for _ in range(3):
    logging.getLogger().warning("a line that no one reads")
open(sys.argv[1], "w").write("lived")
"""


def test_a_run_outlives_the_worker_that_reads_its_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path / "end")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdin is not None and run.stderr is not None
        run.stderr.close()
        run.stdin.write(b"\n")
        run.stdin.close()
        assert run.wait(timeout=120) == 0
    assert (tmp_path / "end").read_text() == "lived"
