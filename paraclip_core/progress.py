"""How a long computation says how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called now and then by a long computation."""

    def __call__(self, done: int, total: int | None, **facts: float | int | str) -> None:
        """`done` of `total` units are ready (None: unknown); `facts` are short figures worth showing."""
        ...


def silent(done: int, total: int | None, **facts: float | int | str) -> None:
    """The progress that nobody looks at."""
