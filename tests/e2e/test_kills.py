"""Stages are killed, or their disk fails: the same fingerprints, the same bytes, nothing paid twice.

By the scripts of benchmarks/, at the smallest size: `kill_every_write.py` at calls that change a file, of every stage;
`kill_paraphrasing.py` at any moment of paraphrasing, over a cache with some of the answers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler, cc, and LD_PRELOAD"
)

REPOSITORY = Path(__file__).parents[2]


def figures_of(script: str, folder: Path, *options: str) -> dict[str, Any]:
    """What a script of benchmarks/ that worked in `folder` came to; it must have ended well."""
    folder.mkdir()
    command = [sys.executable, f"benchmarks/{script}.py", "--folder", str(folder), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "kills"),
    [("kill", 1), *(pytest.param(fault, 6, marks=pytest.mark.nightly) for fault in ("kill", "error", "full"))],
)
def test_a_fault_at_a_call_that_changes_a_file_costs_no_byte(tmp_path: Path, fault: str, kills: int) -> None:
    # Kills at every stage take minutes. A call that fails may be one that the stage can do without, so several are met.
    some = () if (fault, kills) == ("kill", 6) else ("--stages", "ingest,paraphrase_1,all_answered,finetune")
    figures = figures_of("kill_every_write", tmp_path / "work", "--kills", str(kills), "--fault", fault, *some)
    assert figures["good"] and "all_answered" in figures["kills"] and all(figures["kills"].values())
    assert fault != "kill" or all(number >= kills for number in figures["kills"].values())
    assert all(calls >= 10 for calls in figures["calls"].values())


# Enough captions for processes that judge to be started.
CAPTIONS, CHUNK = 2600, 64
KINDS = {"worker", "part", "table", "filter_results", "filter", "select", "server"}


@pytest.mark.nightly
def test_kills_of_paraphrasing_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    kills = 16
    sizes = ["--captions", str(CAPTIONS), "--kills", str(kills), "--chunk", str(CHUNK)]
    figures = figures_of("kill_paraphrasing", tmp_path / "work", *sizes)
    # They hit a run that was at work (two may be too late), some between a part and its place in the table.
    assert kills - 2 <= figures["kills"] == sum(figures["kinds"].values()) <= kills
    assert len(set(figures["kinds"])) >= 5 and KINDS.issuperset(figures["kinds"])
    assert figures["parts_ahead"] >= 1 and figures["same_bytes"] and figures["good"]
    # One in twenty captions comes twice, and step 2 asks only once for texts that became alike.
    assert CAPTIONS < figures["distinct"] < 2 * CAPTIONS
    assert figures["cached_rows"] == figures["cached_keys"] == figures["distinct"]
    assert figures["carried"] and figures["distinct_seen"] == figures["distinct"] - figures["carried"]
    assert figures["twice"] == figures["asked"] - figures["distinct_seen"] <= kills * CHUNK
