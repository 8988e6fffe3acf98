"""How fast, how often and for how much money a server may be asked."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from paraclip_core.engine_options import OpenAIOptions
from paraclip_core.errors import BudgetError

__all__ = ["Budget", "Pace", "Rest", "backoff", "retry_after"]

LONGEST_BACKOFF = 60.0

Rest = Callable[[float], Awaitable[None]]
"""Waits so many seconds; may raise to end the waiting."""


class Pace:
    """Spreads requests over time, so that no minute sees more of them, or more tokens, than is allowed.

    Each request gets the first free moment of both limits; there are no bursts, which a server that counts whole
    minutes would refuse. Used from one event loop.
    """

    def __init__(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        """0 stands for no limit."""
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = self._quiet_until = 0.0

    async def turn(self, tokens: float, rest: Rest) -> None:
        """Wait for the turn of a request of about so many tokens."""
        while True:
            now = time.monotonic()
            at = max(now, self._next_request, self._next_token, self._quiet_until)
            self._next_request = at + self._seconds_per_request
            self._next_token = at + tokens * self._seconds_per_token
            if at > now:
                await rest(at - now)
            # A turn within a pause that was asked for meanwhile is none: all of them at its end would be a burst.
            if self._quiet_until <= time.monotonic():
                return

    def correct(self, estimated: float, counted: float) -> None:
        """Put right what a request was taken to need."""
        self._next_token += (counted - estimated) * self._seconds_per_token

    def pause(self, seconds: float) -> None:
        """Let no request go out for a while: the server asked for it."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)


class Budget:
    """Counts what answers cost and stops before the cap is passed. Used from one event loop.

    A request sets aside the most that it can cost, so answers under way cannot pass the cap together either.
    """

    def __init__(self, options: OpenAIOptions, spent: float = 0.0) -> None:
        self._options = options
        self.spent = spent
        """Cost of all answers so far, in the currency of the prices."""
        self._set_aside = 0.0
        self._changed = asyncio.Event()

    def add(self, prompt_tokens: float, completion_tokens: float) -> None:
        """Count an answer."""
        self.spent += self._options.cost(prompt_tokens, completion_tokens)

    async def set_aside(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Set aside what a request may cost, waiting for answers under way where only they stand against it.

        Raises:
            BudgetError: it does not fit under the cap any more.
        """
        cost = self._options.cost(prompt_tokens, completion_tokens)
        cap = self._options.max_spend
        while cap and self.spent + self._set_aside + cost > cap:
            if self.spent + cost > cap:
                raise BudgetError(
                    f"the spending cap is reached: {self.spent:.6g} of paraphrase.openai.max_spend={cap:g} is spent "
                    f"(earlier runs included), and one request more may cost {cost:.3g}. Everything answered is kept; "
                    "raise max_spend and run again to go on from there"
                )
            self._changed.clear()
            await self._changed.wait()
        self._set_aside += cost
        return cost

    def release(self, cost: float) -> None:
        """Give back what `set_aside` returned, once the request is over."""
        self._set_aside = max(0.0, self._set_aside - cost)
        self._changed.set()


def backoff(base: float, attempt: int) -> float:
    """Seconds to wait after attempt 0, 1, …: `base` doubled each time, up to a minute, less up to a half at random."""
    # Where many wait for the same server, equal waits would bring them all back at once.
    return min(LONGEST_BACKOFF, base * 2 ** min(attempt, 30)) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait (`retry-after-ms`, or `retry-after` as seconds or HTTP date), if it does."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
