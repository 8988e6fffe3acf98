"""The latest answers of a step, for a person who wants to see what the model says while it works."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["Samples"]

LONGEST = 300
"""Characters of a text that are kept."""


class Samples:
    """The latest few answers, those that are judged with their verdict."""

    def __init__(self, size: int = 20) -> None:
        """`size` is how many are remembered."""
        self.size = size
        self._rows: deque[dict[str, str]] = deque(maxlen=size)

    @property
    def rows(self) -> list[dict[str, str]]:
        """`input`, `answer` and `outcome` (`kept`, a reason with its detail, or `not judged yet`), newest first."""
        return list(reversed(self._rows))

    def answered(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Texts and raw answers that just came; they are judged together with their block."""
        self._rows.extend(_row(text, answer, "not judged yet") for text, answer in pairs)

    def judged(self, verdicts: Iterable[tuple[str, str | None, str | None, str | None]]) -> None:
        """Text, answer, reason and detail of rows whose block is judged; the reason is None where one was kept."""
        for text, answer, reason, detail in verdicts:
            outcome = "kept" if reason is None else f"{reason}: {detail}" if detail else reason
            self._rows.append(_row(text, answer or "", outcome))


def _row(text: str, answer: str, outcome: str) -> dict[str, str]:
    return {"input": text[:LONGEST], "answer": answer[:LONGEST], "outcome": outcome[:LONGEST]}
