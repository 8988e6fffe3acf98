"""Each benchmark at its smallest size: both sides come to the same, and their ratio is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNS = {
    "bench_cache --rows 2000 --batch 500 --repeat 1": {"cache_insert_vs_sqlite", "cache_lookup_vs_sqlite"},
    "bench_eval --images 20 --repeats 1": {"eval_vs_clip_benchmark"},
    "bench_ingest --rows 2000 --rounds 1": {"ingest_rows"},
    "bench_filters --captions 700 --presets off --repeat 1": {"judging_scales"},
    "bench_index --rows 3000 --dim 32 --queries 400 --naive-rows 1000": {
        "index_link",
        "index_memory",
        "index_draw",
        "index_plan",
    },
    "bench_loader --rows 2000 --naive-rows 1000": {"loader_spool", "loader_first_batch", "loader_wait"},
}


@pytest.mark.parametrize(
    "run", [run if run.startswith("bench_cache") else pytest.param(run, marks=pytest.mark.nightly) for run in RUNS]
)
def test_a_benchmark_records_its_ratios(run: str, tmp_path: Path) -> None:
    script, *arguments = run.split()
    environment = {name: value for name, value in os.environ.items() if name != "PARACLIP_DATA"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    command = [sys.executable, ROOT / "benchmarks" / f"{script}.py", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert {line["name"] for line in lines} == RUNS[run] and all(line["value"] > 0 for line in lines)
