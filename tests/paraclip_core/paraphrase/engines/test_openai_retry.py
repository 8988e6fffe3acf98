"""Pace, budget, back-off and Retry-After without a server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import OpenAIOptions
from paraclip_core.errors import BudgetError
from paraclip_core.paraphrase.engines import openai_retry
from paraclip_core.paraphrase.engines.openai import Budget
from paraclip_core.paraphrase.engines.openai_retry import Pace, backoff
from paraclip_core.paraphrase.engines.openai_wire import retry_after

NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)


class Clock:
    """Time that passes only when somebody rests."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def rest(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(openai_retry, "time", clock)
    return clock


def turns(pace: Pace, clock: Clock, tokens: list[float]) -> list[float]:
    """Moments at which requests of so many tokens go out, one after another."""

    async def all_of_them() -> list[float]:
        moments = []
        for each in tokens:
            await pace.turn(each, clock.rest)
            moments.append(clock.now - 1000)
        return moments

    return asyncio.run(all_of_them())


def test_requests_and_tokens_are_spread_over_the_minute(clock: Clock) -> None:
    assert turns(Pace(0, 0), clock, [10, 10]) == [0, 0]
    assert turns(Pace(60, 0), clock, [10, 10, 10]) == [0, 1, 2]
    clock.now = 1000
    assert turns(Pace(60, 600), clock, [10, 50, 10, 10]) == [0, 1, 6, 7]


def test_estimates_are_put_right(clock: Clock) -> None:
    pace = Pace(0, 60)
    assert turns(pace, clock, [30]) == [0]
    pace.correct(30, 5)
    assert turns(pace, clock, [5]) == [5]


def test_a_pause_holds_everybody(clock: Clock) -> None:
    pace = Pace(60, 0)
    pace.pause(10)
    pace.pause(3)
    assert turns(pace, clock, [1, 1]) == [10, 11]


def test_a_turn_within_a_pause_is_taken_again_behind_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    pace, rest = Pace(60, 0), clock.rest

    async def told_to_wait(seconds: float) -> None:
        await rest(seconds)
        if clock.now == 1001:
            pace.pause(10)

    monkeypatch.setattr(clock, "rest", told_to_wait)
    assert turns(pace, clock, [1, 1, 1]) == [0, 11, 12]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=30), st.floats(1, 500))
def test_what_fits_is_let_through_and_the_cap_is_never_passed(answers: list[tuple[float, float]], cap: float) -> None:
    budget = Budget(
        OpenAIOptions(
            max_spend=cap,
            price_per_million_prompt_tokens=1e6,
            price_per_million_completion_tokens=1e6,
            base_url="http://x",
        )
    )

    async def ask(most: float, found: float) -> None:
        cost = await budget.set_aside(most, 0)
        await asyncio.sleep(0)
        budget.add(min(most, found), 0)
        budget.release(cost)

    async def everything() -> list[BaseException | None]:
        return await asyncio.gather(*(ask(*each) for each in answers), return_exceptions=True)

    results = asyncio.run(everything())
    assert budget.spent <= cap * (1 + 1e-9)
    assert all(result is None or isinstance(result, BudgetError) for result in results)
    if sum(most for most, _ in answers) <= cap:
        assert results == [None] * len(answers)


def test_backoff_doubles_up_to_a_minute_and_is_never_the_same_for_all() -> None:
    for attempt, longest in [(0, 0.5), (1, 1), (5, 16), (7, 60), (5000, 60)]:
        waits = {backoff(0.5, attempt) for _ in range(50)}
        assert longest / 2 <= min(waits) <= max(waits) <= longest
        assert len(waits) > 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 09:28:30 +0200"}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 99 Oct 2026 99:99:99 GMT"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@given(st.text(max_size=40))
def test_no_header_is_a_crash(text: str) -> None:
    found = retry_after({"retry-after": text}, NOW)
    assert found is None or found >= 0
