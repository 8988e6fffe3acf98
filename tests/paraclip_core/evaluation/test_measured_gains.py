"""The measurement that a plan quotes is the nearest one, and stands in the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.evaluation.measured_gains import MEASURED, MeasuredGain, what_others_saw

RESULTS = (Path(__file__).parents[3] / "docs" / "results.md").read_text().replace("−", "-")


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: str(row.captions))
def test_each_stands_in_the_results(row: MeasuredGain) -> None:
    (line,) = [line for line in RESULTS.splitlines() if line.startswith(f"| {row.captions:,} ")]
    assert f"{row.gain:+.2f}" in line and f"{row.over_control:+.2f}" in line
    assert (line.count("*promote*"), len(re.findall(r"\*(promote|hold)\*", line))) == (row.promoted, row.runs)


@given(st.integers(0, 10**7))
def test_the_nearest_is_quoted(captions: int) -> None:
    (quoted,) = [row for row in MEASURED if f" {row.captions:,} captions" in what_others_saw(captions)]
    ratios = [max(row.captions, 1) / max(captions, 1) for row in MEASURED]
    distances = [max(ratio, 1 / ratio) for ratio in ratios]
    assert distances[MEASURED.index(quoted)] == pytest.approx(min(distances))
