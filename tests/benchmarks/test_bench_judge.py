"""The benchmark of judging compares bytes, and sees how long an engine waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_verdicts_are_the_same_bytes_whatever_judges(records: Callable[..., dict[str, Any]]) -> None:
    arguments = ("--captions", "600", "--presets", "off", "--repeat", "1", "--only", "scales")
    assert set(records("bench_judge.py", *arguments)) == {"judging_scales"}


def test_an_engine_hardly_waits_while_answers_are_judged(records: Callable[..., dict[str, Any]]) -> None:
    recorded = records("bench_judge.py", "--captions", "700", "--presets", "off", "--only", "waits")
    assert set(recorded) == {"stage_over_instant", "engine_busy"}
    # The cores of a machine that tests have busy are not the engine's.
    assert recorded["engine_busy"]["ratio"] > 0.5
