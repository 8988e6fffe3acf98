"""Calibration measures each combination with captions of its own, and keeps what it was answered."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

RATES = r"[\d.]+ requests/s, \d+ tokens/s, 12 captions in [\d.]+ s"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of 30 captions with an engine that answers at once."""
    (tmp_path / "captions.txt").write_text("".join(f"dog {n} runs on a beach\n" for n in range(30)))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"data: {{root: {tmp_path}, sources: [{{path: captions.txt}}]}}\n"
        f"run: {{root: {tmp_path / 'root'}}}\n"
        "paraphrase: {engine: 'instant:Instant', prompts: paper}\n"
    )
    return path


def answered(config: Path) -> int:
    """Answers in the run's cache."""
    folder = config.parent / "root" / "cache" / "segments"
    return pq.read_table(folder, columns=["key"]).num_rows if folder.is_dir() else 0


def test_each_combination_is_a_line(run_benchmark: Callable[..., list[Any]], config: Path) -> None:
    arguments = ("-c", str(config), "--captions", "12")
    lines = run_benchmark("calibrate.py", *arguments, "--try", "paraphrase.chunk=4,many,8")
    assert re.fullmatch(f"paraphrase.chunk=4: {RATES}", lines[0])
    assert "should be a valid integer" in lines[1]
    assert "10 training captions are without an answer of instant-1, 20 are needed" in lines[2] and len(lines) == 3
    # 8 captions more load the model.
    assert answered(config) == 20
    (line,) = run_benchmark("calibrate.py", *arguments, "--set", "paraphrase.seed=1", "--dry")
    assert re.fullmatch(f"as configured: {RATES}", line)
    assert answered(config) == 20
