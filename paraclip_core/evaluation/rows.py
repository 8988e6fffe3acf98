"""Rows of a comparison: each figure of two models with its difference and interval, and its words in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.benchmarks import Metric, metric_of
from paraclip_core.evaluation.intervals import Z, delta_interval

DIGITS = 6
"""Decimals written for a figure, far below the width of any interval."""


@dataclass(frozen=True)
class Outcome:
    """One benchmark, measured for both models."""

    benchmark: str
    kind: str
    base: Measured
    tuned: Measured


@dataclass(frozen=True)
class Row:
    """One figure of one benchmark, in its metric's unit: percentages, and points for `delta`, `low` and `high`."""

    benchmark: str
    kind: str
    metric: str
    base: float
    tuned: float
    delta: float
    low: float
    high: float
    n: int
    """Queries."""
    clusters: int
    """Independent groups of queries, which are resampled for the interval."""

    @property
    def rule(self) -> str:
        """Its name in `evaluate.gate`."""
        return f"{self.kind}/{self.metric}"

    @property
    def facts(self) -> Metric:
        return metric_of(self.kind, self.metric)

    @property
    def gain(self) -> tuple[float, float, float]:
        """`delta`, `low` and `high`, negated if lower is better."""
        turned = self.facts.lower_is_better
        return (-self.delta, -self.high, -self.low) if turned else (self.delta, self.low, self.high)

    @property
    def side(self) -> int:
        """1 if the interval shows a gain, -1 if it shows a loss, 0 if it contains zero."""
        _, low, high = self.gain
        return 1 if low > 0 else -1 if high < 0 else 0

    @property
    def error(self) -> float:
        """Its standard error, from the interval's width."""
        return (self.high - self.low) / 2 / Z

    @property
    def name(self) -> str:
        """Metric and benchmark, as within a sentence."""
        return f"{lower(self.facts.words)} of {self.benchmark}"

    @property
    def amount(self) -> str:
        """The difference and its interval."""
        return f"{self.delta:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def __str__(self) -> str:
        return f"{self.name} {self.amount}"


def compared_rows(outcomes: Iterable[Outcome]) -> tuple[Row, ...]:
    """A row for each metric of each outcome, in their order.

    Raises :class:`BenchmarkError` if an interval cannot be computed.
    """
    return tuple(_row(outcome, metric) for outcome in outcomes for metric in outcome.base.samples)


def listed(rows: Sequence[Row]) -> str:
    """The rows in words, separated by commas."""
    return ", ".join(map(str, rows))


def lower(words: str) -> str:
    """As within a sentence; an acronym keeps its case."""
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]


def _row(outcome: Outcome, metric: str) -> Row:
    base, tuned = outcome.base.samples[metric], outcome.tuned.samples[metric]
    try:
        interval = delta_interval(base, tuned)
    except BenchmarkError as error:
        raise BenchmarkError(f"benchmark {outcome.benchmark!r}, {metric}: {error}") from error
    values = (base.statistic(), tuned.statistic(), interval.delta, interval.low, interval.high)
    scale = metric_of(outcome.kind, metric).scale
    rounded = [round(scale * value, DIGITS) + 0.0 for value in values]  # adding 0 turns -0 into 0
    return Row(outcome.benchmark, outcome.kind, metric, *rounded, n=len(base.values), clusters=interval.clusters)
