"""What a step reports while it runs."""

from __future__ import annotations

from typing import Any

import pytest

from paraclip_core.paraphrase import reporting
from paraclip_core.paraphrase.counts import Counts
from paraclip_core.paraphrase.intake import BLOCK_ROWS
from paraclip_core.paraphrase.reporting import Reporter


class Engine:
    """Only looked at, for what it spent."""

    name, model, spent = "paid", "some", 0.0

    def generate(self, *_: object) -> Any:
        raise AssertionError

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        raise AssertionError


@pytest.fixture
def told() -> list[tuple[int, int | None, dict[str, Any]]]:
    return []


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    return now


def reporter(told: list[Any], counts: Counts, engine: Engine, total: int | None) -> Reporter:
    return Reporter(lambda done, of, **facts: told.append((done, of, facts)), counts, engine, total)  # pyright: ignore


def test_rates_and_the_time_left(told: list[Any], counts: Counts, clock: list[float]) -> None:
    rows = 2 * BLOCK_ROWS
    engine = Engine()
    report = reporter(told, counts, engine, rows)
    clock[0] += 8
    counts.generated, counts.cached, counts.completion_tokens = 30, 10, 200
    report.tell(0.25)
    counts.accepted = 3
    counts.rejected["echo"] = 1
    engine.spent = 0.5
    report.finished(BLOCK_ROWS)
    report.tell(1, {"words": 3, "words_total": 9})
    known = {"requests_per_second": 3.8, "generated": 30, "cached": 10, "tokens_per_second": 25.0}
    judged = {"acceptance": 0.75, "spend": 0.5}
    assert told == [
        (BLOCK_ROWS // 4, rows, known | {"eta_seconds": 56}),
        (BLOCK_ROWS, rows, known | judged | {"eta_seconds": 8}),
        (rows, rows, known | judged | {"words": 3, "words_total": 9}),
    ]


def test_what_earlier_runs_were_answered_speeds_up_no_rate(told: list[Any], counts: Counts, clock: list[float]) -> None:
    report = reporter(told, counts, Engine(), 4 * BLOCK_ROWS)
    # Two blocks and half of the third are known, the rest takes 0.01 s a row.
    for _ in range(2):
        clock[0] += 1
        counts.cached += BLOCK_ROWS
        report.finished(BLOCK_ROWS)
    counts.cached += BLOCK_ROWS // 2
    report.begun(0.5)
    clock[0] += 10.24
    counts.generated, counts.completion_tokens = 1024, 10_240
    report.tell(0.75)
    clock[0] += 10.24
    counts.generated = 2048
    report.finished(BLOCK_ROWS)
    report.begun(0)
    clock[0] += 20.48
    counts.generated += 2048
    report.tell(0.5)
    rate = {"requests_per_second": 100.0, "tokens_per_second": 1000.0}
    assert [facts.get("eta_seconds") for _, _, facts in told] == [3, 2, None, 31, 21, 41, 20]
    assert [done / BLOCK_ROWS for done, _, _ in told] == [1, 2, 2.5, 2.75, 3, 3, 3.5]
    assert {name: told[3][2][name] for name in rate} == rate


def test_new_captions_among_many_known_ones_do_not_slow_all_down(
    told: list[Any], counts: Counts, clock: list[float]
) -> None:
    report = reporter(told, counts, Engine(), 10 * BLOCK_ROWS)
    for _ in range(2):
        report.begun(0.75)
        clock[0] += 8
        counts.generated += BLOCK_ROWS // 4
        report.finished(BLOCK_ROWS)
    assert told[-1][2]["eta_seconds"] == 64


def test_answers_that_come_ahead_are_not_the_judged_block_s(
    told: list[Any], counts: Counts, clock: list[float]
) -> None:
    report = reporter(told, counts, Engine(), 4 * BLOCK_ROWS)
    # While a known block is judged, a quarter of the next one is answered.
    clock[0] += 10
    counts.generated = BLOCK_ROWS // 4
    report.finished(BLOCK_ROWS)
    report.begun(0)
    clock[0] += 10
    counts.generated = BLOCK_ROWS // 2
    report.tell(0.5)
    assert told[-1][2]["eta_seconds"] == 100
    assert told[-1][2]["requests_per_second"] == round(BLOCK_ROWS / 40, 1)


def test_nothing_is_said_of_what_is_not_known(told: list[Any], counts: Counts, clock: list[float]) -> None:
    report = reporter(told, counts, Engine(), None)
    clock[0] += 2
    report.tell(0.5)
    assert told == [(BLOCK_ROWS // 2, None, {"requests_per_second": 0.0, "generated": 0, "cached": 0})]
