"""The memory benchmark goes through all phases; its engine stands in wherever a stage or a plan asks for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_phase_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "bench_memory.py", "--captions", "300"]
    apart = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=os.environ | apart, stdout=subprocess.PIPE, text=True, check=True)
    *phases, summary = done.stdout.splitlines()
    counts = {found["phase"]: found for found in (json.loads(line.partition(" ")[2]) for line in phases)}
    assert (counts["paraphrase_1"]["generated"], counts["cached"]["generated"], counts["cached"]["cached"]) == (
        300,
        0,
        300,
    )
    assert (counts["plan"]["paraphrase_1"], counts["plan of step 2"]["paraphrase_1"]) == (300, 0)
    assert counts["paraphrase_2"]["accepted"] == 300 and counts["plan of nothing"]["paraphrase_2"] == 0
    assert json.loads(summary)["value"] == max(found["peak_mib"] for found in counts.values())
