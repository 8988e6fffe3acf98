"""What the report's values say of themselves."""

from __future__ import annotations

import pytest

from paraclip_core.report.data import Comparison


@pytest.mark.parametrize(
    ("metric", "low", "high", "clear"),
    [
        ("ao@10", 0.1, 0.3, 1),
        ("ao@10", -0.3, -0.1, -1),
        ("ao@10", -0.1, 0.1, 0),
        ("ao@10", None, None, 0),
        ("text_only_closeness", 0.1, 0.3, -1),
        ("text_only_closeness@swap_att", -0.3, -0.1, 1),
    ],
)
def test_a_gain_is_told_from_a_loss(metric: str, low: float | None, high: float | None, clear: int) -> None:
    assert Comparison("b", metric, 1.0, 1.0, 0.0, low, high, 10).clear == clear
