"""Benchmarks at the smallest size: they run through, and what they see to holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_benchmark(tmp_path: Path) -> Callable[..., list[Any]]:
    """Run a benchmark's script with arguments; its lines of output, parsed where they are JSON."""

    def run(script: str, *arguments: str) -> list[Any]:
        command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
        apart = {"TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
        done = subprocess.run(command, env=os.environ | apart, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) if line.startswith('{"') else line for line in done.stdout.splitlines()]

    return run


@pytest.fixture
def records(run_benchmark: Callable[..., list[Any]]) -> Callable[..., dict[str, Any]]:
    """Run a benchmark's script with arguments; what it recorded, by name."""

    def run(script: str, *arguments: str) -> dict[str, Any]:
        lines = run_benchmark(script, *arguments)
        return {line["name"]: line for line in lines if isinstance(line, dict) and "name" in line}

    return run
