"""What a person is told while a run goes on."""

from __future__ import annotations

import pytest

from paraclip_core import progress
from paraclip_core.progress import Throughput


def test_rate_and_waiting_are_of_the_time_since_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    reports: list[tuple[int, dict]] = []
    shown = Throughput(lambda done, total, **facts: reports.append((done, facts)), 100, 10, 8)
    with shown.waiting():
        now += 0.5
    shown.report(11, loss=1.0)  # too early for a word
    now += 1.5
    shown.report(14, loss=2.0)
    now += 4.0
    shown.report(16, loss=3.0)
    now += 0.1
    shown.report(100, loss=4.0)  # the last one is always told
    assert reports == [
        (14, {"eta_seconds": 43, "loss": 2.0, "samples_per_second": 16.0, "data_wait_percent": 25.0}),
        (16, {"eta_seconds": 168, "loss": 3.0, "samples_per_second": 4.0, "data_wait_percent": 0.0}),
        (100, {"eta_seconds": 0, "loss": 4.0, "samples_per_second": 6720.0, "data_wait_percent": 0.0}),
    ]
