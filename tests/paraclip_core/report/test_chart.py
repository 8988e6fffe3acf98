"""Ticks are round, long lines are thinned, and labels stay text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from paraclip_core.report.chart import Axis, Line, line_chart


@pytest.mark.parametrize(
    ("values", "count", "whole", "ticks"),
    [
        ([0, 1], 6, False, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([3, 3], 6, True, ["3"]),
        ([1, 400], 6, True, ["0", "100", "200", "300", "400"]),
        ([0.0012, 0.0031], 5, False, ["0.0015", "0.0020", "0.0025", "0.0030"]),
        ([-7.5, 12], 5, False, ["-5", "0", "5", "10"]),
    ],
)
def test_ticks_are_round_and_inside(values: list[float], count: int, whole: bool, ticks: list[str]) -> None:
    axis = Axis.over(values, 0, 100, count, whole)
    assert [f"{tick:.{axis.decimals}f}" for tick in axis.ticks] == ticks
    assert all(0 <= float(axis.at(tick)) <= 100 for tick in (*axis.ticks, *values))


def test_long_lines_are_thinned_and_labels_stay_text() -> None:
    steps = list(range(20_000))
    svg = line_chart("long", [Line("loss", steps, [float(s % 7) for s in steps])], "step", "loss")
    assert len(svg) < 40_000
    ET.fromstring(line_chart('"><script>', [Line("<b>&", [1, 2], [3, 4]), Line("c", [1, 2], [3, 4])], "x", "y"))
