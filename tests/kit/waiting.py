"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")


def eventually(
    what: Callable[[], T | Literal[False] | None],
    message: str | Callable[[], str] = "it never happened",
    seconds: float = 500,
) -> T:
    """The first true value of `what()`; `message` may be a function that is called if none comes."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, message() if callable(message) else message
        time.sleep(0.1)
    return value
