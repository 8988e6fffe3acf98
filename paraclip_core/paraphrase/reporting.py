"""How far a paraphrase step is, for the progress bar: rates, time left, acceptance and spend."""

from __future__ import annotations

import time
from collections.abc import Mapping

from paraclip_core.paraphrase.counts import Counts
from paraclip_core.paraphrase.intake import BLOCK_ROWS
from paraclip_core.paraphrase.protocol import Engine, PaidEngine
from paraclip_core.progress import Progress

__all__ = ["Reporter"]


class Reporter:
    """Reports of one pass over the rows.

    What earlier runs were answered passes in no time, so rates and time left go by what is asked for in this pass, as
    soon as something is.
    """

    def __init__(self, progress: Progress, counts: Counts, engine: Engine, total: int | None) -> None:
        """`counts` and what the `engine` spent are read at each report; `total` is the number of rows, if known."""
        self._progress, self._counts, self._engine, self._total = progress, counts, engine, total
        self._started = self._block_began = time.monotonic()
        self._rows = 0
        self._known = 1.0
        """Share of the latest block that the cache answered."""
        self._here: float | None = None
        """That of the current one; None as long as nothing is asked for in it."""
        self._asked_rows = 0.0
        """Rows of finished blocks that were asked for."""
        self._idle_rows, self._idle_seconds = 0, 0.0
        """Blocks that were not asked for, and the time in which no answer came."""
        self._generated = 0
        """Answers that had come when the current block began."""

    def begun(self, known: float) -> None:
        """The cache answers the share `known` of the current block, and the rest is asked for now."""
        self._known = self._here = known
        if known or self._rows:
            self.tell(known)

    def finished(self, rows: int) -> None:
        """A block of `rows` is judged."""
        now = time.monotonic()
        self._rows += rows
        self._known = 1.0 if self._here is None else self._here
        if self._here is None:
            self._idle_rows += rows
        self._asked_rows += rows * (1 - self._known)
        # Answers for the block that follows may have come meanwhile.
        if self._counts.generated == self._generated:
            self._idle_seconds += now - self._block_began
        self._here = None
        self._block_began, self._generated = now, self._counts.generated
        self.tell(0)

    def tell(self, share: float, more: Mapping[str, int] | None = None) -> None:
        """Report that `share` of the current block's captions are answered; `more` is asked about them."""
        if more and self._here is None:
            # Rejected rows are asked for again: the block takes as long as the next one will.
            self._here = 0.0
        seconds = max(time.monotonic() - self._started, 1e-6)
        block = max(min(BLOCK_ROWS, (self._total or BLOCK_ROWS) - self._rows), 0)
        done = self._rows + int(share * block)
        facts = self._facts(seconds, more or {})
        # How long what is asked about answered captions will take is not known.
        left = None if more else self._left(share, block, done, seconds)
        if left is not None:
            facts["eta_seconds"] = round(left)
        self._progress(done, self._total, **facts)

    def _facts(self, seconds: float, more: Mapping[str, int]) -> dict[str, float | int]:
        counts = self._counts
        judged = counts.accepted + sum(counts.rejected.values())
        asking = max(seconds - self._idle_seconds, 1e-6)
        rate = counts.generated / asking if counts.generated else counts.cached / seconds
        facts: dict[str, float | int] = {
            "requests_per_second": round(rate, 1),
            "generated": counts.generated,
            "cached": counts.cached,
            **more,
        }
        if counts.completion_tokens:
            facts["tokens_per_second"] = round(counts.completion_tokens / asking, 1)
        if judged:
            facts["acceptance"] = round(counts.accepted / judged, 3)
        if isinstance(self._engine, PaidEngine) and self._engine.spent:
            facts["spend"] = round(self._engine.spent, 4)
        return facts

    def _left(self, share: float, block: int, done: int, seconds: float) -> float | None:
        """Seconds until the last row; None where nothing tells."""
        if not (self._total and done):
            return None
        asked = self._asked_rows + max(0.0, share - self._known) * block
        if not asked:
            # Nothing was asked for yet, and it is known only once something is.
            return seconds * (self._total - done) / done if self._known == 1 else None
        here = (1 - share) * block if share else 0.0
        beyond = max(self._total - done - here, 0.0)
        asking = (seconds - self._idle_seconds) / asked
        idle = self._idle_seconds / self._idle_rows if self._idle_rows else 0.0
        return here * asking + beyond * ((1 - self._known) * asking + self._known * idle)
