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
    """Reports of one pass over the rows."""

    def __init__(self, progress: Progress, counts: Counts, engine: Engine, total: int | None) -> None:
        """`counts` and what the `engine` spent are read at each report; `total` is the number of rows, if known."""
        self._progress, self._counts, self._engine, self._total = progress, counts, engine, total
        self._started = time.monotonic()
        self._rows = 0

    def finished(self, rows: int) -> None:
        """A block of `rows` is judged."""
        self._rows += rows
        self.tell(0)

    def tell(self, share: float, more: Mapping[str, int] | None = None) -> None:
        """Report that `share` of the current block's captions are answered; `more` is asked about them."""
        block = min(BLOCK_ROWS, (self._total or BLOCK_ROWS) - self._rows)
        done = self._rows + int(share * max(block, 0))
        self._progress(done, self._total, **self._facts(done, more or {}))

    def _facts(self, done: int, more: Mapping[str, int]) -> dict[str, float | int]:
        counts = self._counts
        seconds = max(time.monotonic() - self._started, 1e-6)
        judged = counts.accepted + sum(counts.rejected.values())
        facts: dict[str, float | int] = {
            "requests_per_second": round((counts.cached + counts.generated) / seconds, 1),
            "generated": counts.generated,
            "cached": counts.cached,
            **more,
        }
        if counts.completion_tokens:
            facts["tokens_per_second"] = round(counts.completion_tokens / seconds, 1)
        # How long what is asked about answered captions will take is not known.
        if self._total and done and not more:
            facts["eta_seconds"] = round(seconds * max(self._total - done, 0) / done)
        if judged:
            facts["acceptance"] = round(counts.accepted / judged, 3)
        if isinstance(self._engine, PaidEngine) and self._engine.spent:
            facts["spend"] = round(self._engine.spent, 4)
        return facts
