"""Base against tuned: every figure with its difference and interval, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from paraclip_core.config import EvaluateOptions, GateRule
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.bootstrap import delta_interval
from paraclip_core.evaluation.samples import Measured
from paraclip_core.metric_names import lower_is_better

__all__ = ["Comparison", "Judge", "Outcome", "Row", "compare", "judge", "judge_challenger"]

Verdict = Literal["promote", "hold"]

FEWEST_IMAGES = 20
"""In a smaller pool most answers of chance are among the first ten, so that overlaps and recall@10 prove nothing."""
DIGITS = 6
"""Decimals of a percentage that are written: far below what any interval tells apart."""


@dataclass(frozen=True)
class Outcome:
    """One benchmark, measured for both models."""

    benchmark: str
    kind: str
    base: Measured
    tuned: Measured


@dataclass(frozen=True)
class Row:
    """One figure of one benchmark, in percent; `delta`, `low` and `high` are in points."""

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
    """Independent groups of queries, which the interval is drawn over."""

    @property
    def gain(self) -> tuple[float, float, float]:
        """`delta`, `low` and `high` with their signs turned where lower is better."""
        turned = lower_is_better(self.metric)
        return (-self.delta, -self.high, -self.low) if turned else (self.delta, self.low, self.high)


@dataclass(frozen=True)
class Comparison:
    """All rows and what follows from them."""

    rows: tuple[Row, ...]
    verdict: Verdict
    reason: str
    notes: tuple[str, ...]
    """Rules that could not be applied, benchmarks that were left out."""
    confidence: float
    resamples: int

    def as_json(self) -> dict[str, Any]:
        """Itself as plain values."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}


Judge = Callable[[Sequence[Row], GateRule], tuple[Verdict, str, list[str]]]
"""Gives the verdict, its reason, and notes on rules that could not be applied."""


def judge(rows: Sequence[Row], gate: GateRule) -> tuple[Verdict, str, list[str]]:
    """Whether a tuned model is better than its base.

    `promote` needs the interval of `gate.metric` above zero in every benchmark of that kind, and no drop beyond
    `gate.max_drop`; below zero, and no such rise, of a metric that is better when lower. A drop rule whose kind was not
    measured is noted; one whose kind was measured without that metric is most likely misspelt, so the model is held. A
    rule on retrieval that was not measured goes by the captions' recall of paraphrased retrieval.
    """
    return _judge(rows, gate, lambda row: row.gain[1] > 0, "is not clear of zero", "is clear of zero")


def judge_challenger(rows: Sequence[Row], gate: GateRule) -> tuple[Verdict, str, list[str]]:
    """Whether a challenger (the rows' `tuned`) may follow a champion (`base`): it need not be better, but not worse.

    As :func:`judge`, except that `promote` only needs no interval of `gate.metric` to lie below zero, and their mean
    difference not to be a loss.
    """
    verdict, why, notes = _judge(
        rows, gate, lambda row: row.gain[2] >= 0, "lies {worse} zero", "does not lie {worse} zero"
    )
    gains = _matching(rows, gate.metric)
    if verdict == "promote" and sum(row.gain[0] for row in gains) < 0:
        # It may be noise, but tomorrow's challenger is measured against it: many such steps are a slide.
        return "hold", f"{'; '.join(map(_shown, gains))} is a step down, though one that may be noise", notes
    return verdict, why, notes


def compare(
    outcomes: Sequence[Outcome],
    options: EvaluateOptions,
    skipped: Mapping[str, str] | None = None,
    rule: Judge = judge,
) -> Comparison:
    """Rows in the order of benchmarks and metrics, and the verdict by `options.gate`, never `promote` on a tiny pool.

    Args:
        outcomes: what was measured.
        options: resamples, confidence, seed and gate.
        skipped: benchmarks that were left out, with the reason; they become notes.
        rule: how the gate is read.

    Raises:
        BenchmarkError: a benchmark has too few queries for an interval; the message names it.
    """
    rows = tuple(row for outcome in outcomes for row in _rows(outcome, options))
    verdict, reason, notes = rule(rows, options.gate)
    if verdict == "promote" and (small := _small_pools(outcomes)):
        verdict, reason = "hold", f"{'; '.join(small)} prove nothing; use a split of {FEWEST_IMAGES} images or more"
    notes = [*notes, *(f"{name} was left out: {why}" for name, why in (skipped or {}).items())]
    return Comparison(rows, verdict, reason, tuple(notes), options.confidence, options.resamples)


def _small_pools(outcomes: Sequence[Outcome]) -> list[str]:
    found = ((outcome, outcome.base.notes.get("images")) for outcome in outcomes if "retrieval" in outcome.kind)
    return [f"the {n} images of {outcome.benchmark}" for outcome, n in found if n is not None and n < FEWEST_IMAGES]


def _judge(
    rows: Sequence[Row], gate: GateRule, passes: Callable[[Row], bool], failed: str, passed: str
) -> tuple[Verdict, str, list[str]]:
    notes: list[str] = []
    gains = _matching(rows, gate.metric)
    if not gains:
        return "hold", f"{gate.metric} was not measured, so nothing shows a gain; {_known(rows)}", notes
    worse = "above" if lower_is_better(gains[0].metric) else "below"
    problems = [f"{_shown(row)} {failed.format(worse=worse)}" for row in gains if not passes(row)]
    for rule, points in sorted(gate.max_drop.items()):
        found = _matching(rows, rule)
        if not found and any(row.kind == rule.partition("/")[0] for row in rows):
            problems.append(f"the rule on {rule} names no measured metric; {_known(rows)}")
        elif not found and (other := _stand_in(rule)) not in gate.max_drop and (found := _matching(rows, other)):
            notes.append(f"the rule on {rule} was applied to {other}: no such benchmark was measured")
        elif not found:
            notes.append(f"the rule on {rule} was not applied: no such benchmark was measured")
        problems += [
            f"{_name(row)} {'rose' if lower_is_better(row.metric) else 'fell'} by {-row.gain[0]:.2f}, "
            f"at most {points:g} is allowed"
            for row in found
            if -row.gain[0] > points
        ]
    if problems:
        return "hold", "; ".join(problems), notes
    return "promote", f"{'; '.join(map(_shown, gains))} {passed.format(worse=worse)} and no other rule is broken", notes


def _rows(outcome: Outcome, options: EvaluateOptions) -> list[Row]:
    rows = []
    base, tuned = outcome.base.metrics, outcome.tuned.metrics
    for metric, sample in outcome.base.samples.items():
        try:
            interval = delta_interval(
                sample,
                outcome.tuned.samples[metric],
                resamples=options.resamples,
                confidence=options.confidence,
                seed=options.seed,
            )
        except BenchmarkError as error:
            raise BenchmarkError(f"benchmark {outcome.benchmark!r}, {metric}: {error}") from error
        values = (base[metric], tuned[metric], 100 * interval.delta, 100 * interval.low, 100 * interval.high)
        rounded = [round(value, DIGITS) + 0.0 for value in values]  # adding 0 turns -0 into 0
        rows.append(
            Row(outcome.benchmark, outcome.kind, metric, *rounded, n=len(sample.values), clusters=interval.clusters)
        )
    return rows


def _matching(rows: Sequence[Row], rule: str) -> list[Row]:
    kind, _, metric = rule.partition("/")
    return [row for row in rows if row.kind == kind and row.metric == metric]


def _stand_in(rule: str) -> str:
    """What is measured beside overlaps and tells the same as a rule on retrieval.

    Overlaps alone are no proof: they are full for a model that answers every text with the same images.
    """
    return rule.replace("retrieval/text_to_image", "paraphrased_retrieval/caption_text_to_image", 1)


def _shown(row: Row) -> str:
    return f"{_name(row)} {row.delta:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"


def _name(row: Row) -> str:
    return f"{row.benchmark} {row.metric}"


def _known(rows: Sequence[Row]) -> str:
    names = sorted({f"{row.kind}/{row.metric}" for row in rows})
    return f"measured were {', '.join(names)}" if names else "nothing was measured"
