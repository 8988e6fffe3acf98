"""The benchmark of passes goes through all phases, each of which asks and judges what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_every_phase_is_measured(run_benchmark: Callable[..., list[Any]]) -> None:
    lines = run_benchmark("bench_passes.py", "--captions", "300", "--repeat", "1")
    phases = {line["phase"]: line for line in lines if "phase" in line}
    half, rest = (phases[phase]["generated"] for phase in ("half", "paraphrase_1"))
    assert 0 < half < 300 and half + rest == 300
    assert phases["plan"]["paraphrase_1"] == rest
    assert (phases["inserted"]["generated"], phases["inserted"]["judged"]) == (100, 100)
    assert 200 < phases["paraphrase_2"]["generated"] < 400
    recorded = {line["name"]: line for line in lines if "name" in line}
    assert set(recorded) == {"cached_pass", "cached_pass_memory", "inserted_captions", "plan", "paraphrase_memory"}
    assert recorded["paraphrase_memory"]["value"] == max(line["peak_mib"] for line in phases.values())
