"""Compares base and tuned model: every figure with its difference and interval, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, Metric, find_benchmark, metric_of
from paraclip_core.evaluation.intervals import CONFIDENCE, RESAMPLES, delta_interval
from paraclip_core.evaluation.options import EvaluateOptions, GateRule
from paraclip_core.evaluation.power import GAIN, images_needed

Verdict = Literal["promote", "hold"]

ABOVE_CHANCE = 0.01
"""Share of found images from which a base is not near chance, however many images are searched."""
FEWEST_IMAGES = 20
"""In a smaller pool chance puts most images among the first ten, so overlaps and recall@10 prove nothing."""
FEWEST_QUERIES = 10
"""Of two or three queries the bootstrap has nothing to draw from: its interval lies above zero whenever all gain."""
DIGITS = 6
"""Decimals written for a figure, far below the width of any interval."""
KNOWS = tuple(f"{prefix}text_to_image_recall@{RECALL_DEPTHS[-1]}" for prefix in ("", "caption_"))
"""Figures that show whether a model knows its captions at all."""
STAND_INS = {
    "query_pairs/": ("paraphrased_retrieval/", "query_log/"),
    "paraphrased_retrieval/": ("query_log/", "query_pairs/"),
    "retrieval/text_to_image": ("paraphrased_retrieval/caption_text_to_image", "query_log/caption_text_to_image"),
}
"""Prefixes of rules → their stand-ins, of which the first that was measured counts.

Overlaps alone prove nothing: they are complete if a model returns the same images for every text."""
SLIGHT = 0.5
"""Points of the gate's metric below the base from which a control shows nothing: what is gained over it is larger than
what is gained over the base by as much."""
HEADLINE = "paraphrased_query_text_to_image_recall@10"
"""The metric that a verdict begins with."""
TELLS_NOTHING = "an encoder that embeds all texts alike agrees"
COLLAPSE = f"agreement up and recall down is what a collapse looks like, for {TELLS_NOTHING}"


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


@dataclass(frozen=True)
class Comparison:
    """All rows and the conclusions from them."""

    rows: tuple[Row, ...]
    verdict: Verdict
    reason: str
    notes: tuple[str, ...]
    """Rules that could not be applied, and benchmarks that were left out."""
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    over_control: tuple[Row, ...] = ()
    """The same figures with the caption-only control as `base`; empty if it shows nothing."""
    control: tuple[Row, ...] = ()
    """The same figures with the control as `tuned`."""
    untrained: bool = False
    """Whether the base is near chance, so that nothing can be measured with it."""

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values, without those of a control if there is none."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in plain.items() if value or "control" not in name}

    def summary(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """``summary.json``, for machines: figures, differences and intervals by benchmark and metric, and the verdict.

        `fingerprints` are those of the artifacts involved, or the references of the models.
        """
        models: dict[str, dict[str, dict[str, float]]] = {"base": {}, "tuned": {}}
        deltas: dict[str, dict[str, float]] = {}
        intervals: dict[str, dict[str, list[float]]] = {}
        for row in self.rows:
            models["base"].setdefault(row.benchmark, {})[row.metric] = row.base
            models["tuned"].setdefault(row.benchmark, {})[row.metric] = row.tuned
            deltas.setdefault(row.benchmark, {})[row.metric] = row.delta
            intervals.setdefault(row.benchmark, {})[row.metric] = [row.low, row.high]
        controls: dict[str, dict[str, dict[str, list[float]]]] = {}
        for name, rows in (("over_control", self.over_control), ("control", self.control)):
            for row in rows:
                figures = controls.setdefault(name, {}).setdefault(row.benchmark, {})
                figures[row.metric] = [row.delta, row.low, row.high]
        for row in self.control:
            models.setdefault("control", {}).setdefault(row.benchmark, {})[row.metric] = row.tuned
        return {
            "models": models,
            "deltas": deltas,
            "intervals": intervals,
            **controls,
            "verdict": self.verdict,
            "reason": self.reason,
            "notes": list(self.notes),
            "fingerprints": dict(fingerprints),
        }


Gate = Callable[[Sequence[Row], GateRule], tuple[Verdict, str, list[str]]]
"""Returns the verdict, its reason, and notes on rules that could not be applied."""


def apply_gate(rows: Sequence[Row], gate: GateRule) -> tuple[Verdict, str, list[str]]:
    """Decide whether a tuned model is better than its base.

    `promote` requires the interval of `gate.metric` to lie above zero in every benchmark of that kind, and no drop
    beyond `gate.max_drop`; signs are reversed for metrics where lower is better. A rule whose metric was not measured
    uses its stand-in (:data:`STAND_INS`). Without a stand-in, a rule whose kind was not measured is noted; if only the
    metric is missing, the verdict is `hold`, since that benchmark's losses are unknown. If none of the rules can be
    applied, a margin has to show that the encoder does not collapse: it must not fall significantly. The reason
    consists of clauses separated by `; `, the first on `gate.metric`.
    """
    verdict, why, notes = _apply(rows, gate, lambda row: row.gain[1] > 0, "is not clear of zero", "is clear of zero")
    if verdict == "promote" and (unguarded := _unguarded(rows, gate)):
        return "hold", f"{', '.join(map(_shown, _ruled(rows, gate.metric)))}, but {unguarded}", notes
    return verdict, why, notes


def gate_challenger(
    rows: Sequence[Row], gate: GateRule, champion: Sequence[Row] = (), challenger: Sequence[Row] = ()
) -> tuple[Verdict, str, list[str]]:
    """Decide whether a challenger (the rows' `tuned`) may replace a champion (`base`): it must not be worse.

    Like :func:`apply_gate`, except that `promote` only requires that no interval of `gate.metric` lies below zero and
    that their mean difference is not a loss. A challenger that breaks `gate.max_drop` against its own base is never
    promoted. A champion that breaks it holds no challenger back: a collapsed model answers all texts alike, so its
    agreement cannot be matched.

    The rows compare champion and challenger; the other two arguments compare each with the base that it was tuned
    from. A champion without such rows counts as sound.
    """
    if losses := _losses(challenger, gate):
        return "hold", f"the challenger fails the gate against its own base: {losses}", []
    if losses := _losses(champion, gate):
        why = f"the champion fails the gate against its own base ({losses}), so its agreement holds nobody"
        return "promote", why, []
    verdict, why, notes = _apply(
        rows, gate, lambda row: row.gain[2] >= 0, "lies {worse} zero", "does not lie {worse} zero"
    )
    gains = _ruled(rows, gate.metric)
    if verdict == "promote" and sum(row.gain[0] for row in gains) < 0:
        # It may be noise, but the next challenger is measured against it, and many such steps add up to a slide.
        return "hold", f"{', '.join(map(_shown, gains))} is a step down, though one that may be noise", notes
    return verdict, why, notes


def compare(
    outcomes: Sequence[Outcome],
    options: EvaluateOptions,
    skipped: Mapping[str, str] | None = None,
    rule: Gate = apply_gate,
    over: Sequence[Row] = (),
) -> Comparison:
    """Compute rows in the order of benchmarks and metrics, and the verdict by `options.gate`.

    The verdict is never `promote` on a tiny pool, of a few queries or for a base near chance. Its reason begins with
    what of 100 paraphrased queries find their image, and also names every significant loss and, if there are too few
    queries, how many would show a gain.
    Benchmarks that were left out (`skipped`) become notes; `rule` determines how the gate is applied. `over` has the
    figures over a control, if there is one, of which a margin that fell belongs to the beginning, too.
    """
    rows = tuple(row for outcome in outcomes for row in _rows(outcome))
    verdict, reason, notes = rule(rows, options.gate)
    if verdict == "promote" and (small := _small_pools(outcomes)):
        verdict, reason = "hold", f"{', '.join(small)} prove nothing; use a split of {FEWEST_IMAGES} images or more"
    if verdict == "promote" and (small := _small_samples(rows, options.gate)):
        verdict, reason = "hold", f"{', '.join(small)} prove nothing; use {FEWEST_QUERIES} or more"
    notes = [*notes, *(f"{name} was left out: {why}" for name, why in (skipped or {}).items())]
    if rule is apply_gate and (untrained := _untrained(rows, outcomes)):
        return Comparison(rows, "hold", untrained, tuple(notes), untrained=True)
    clauses = [*_headline(rows, over, "the base" if rule is apply_gate else "the champion"), reason]
    measured = {(row.benchmark, row.metric) for row in rows}
    lost = [
        _shown(row)
        for row in rows
        if row.side < 0 and (row.benchmark, row.facts.weighed_by) not in measured and _shown(row) not in reason
    ]
    if lost:
        clauses.append(f"significant losses: {', '.join(lost)}")
    if verdict == "hold":
        lacking = [*_ruled(rows, options.gate.metric), *(row for row, _ in _lost(rows, options.gate))]
        few = [*filter(None, map(_too_few, lacking))]
        remedies = _remedies(rows, options.gate) if rule is apply_gate and not few else []
        clauses += few or [f"what would change it: {remedy}" for remedy in remedies]
    return Comparison(rows, verdict, "; ".join(clauses), tuple(notes))


def _remedies(rows: Sequence[Row], gate: GateRule) -> list[str]:
    """The one thing that would change a *hold* that enough images confirm; empty if its reason says it."""
    gains, lost = _ruled(rows, gate.metric), _lost(rows, gate)
    if gains and lost and all(row.side > 0 for row in gains):
        row, points = lost[0]
        return [
            f"a smaller α (finetune.alpha.grid), or more than {points:g} points for {row.rule} in "
            "evaluate.gate.max_drop, if the gain is worth the loss"
        ]
    if any(row.side <= 0 for row in gains):
        return ["more captions, or paraphrases of a more capable model (docs/training.md)"]
    kind = gate.metric.partition("/")[0]
    return [] if gains else [f"a benchmark of the kind {kind} (evaluate.benchmarks, or --benchmark outside a run)"]


def _headline(rows: Sequence[Row], over: Sequence[Row], base: str) -> list[str]:
    """What the figures mean to a user, in a clause that needs no glossary; empty if there is nothing to begin with.

    A margin that fell significantly, over the first model (`base` in words) or over the control (`over`), belongs to
    it, for then queries of different meaning agree more, too.
    """
    words = [
        f"of 100 paraphrased queries {row.tuned:.0f} find their image among the first ten (before: {row.base:.0f})"
        for row in rows
        if row.metric == HEADLINE
    ][:1]
    fell = [(row, base) for row in rows if row.metric == "margin" and row.side < 0]
    fell += [(row, "the control") for row in over if row.metric == "margin" and row.side < 0]
    if fell:
        amounts = ", ".join(f"{_amount(row)} over {model} on {row.benchmark}" for row, model in fell)
        words.append(
            f"{'but ' if words else ''}queries of different meaning agree more, too: the margin changes by {amounts}"
        )
    return [", ".join(words)] if words else []


def _amount(row: Row) -> str:
    return f"{row.delta:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"


def with_control(comparison: Comparison, over: Sequence[Row], control: Sequence[Row], gate: GateRule) -> Comparison:
    """Add the control to a comparison: the gain over the caption-only control is what the paraphrases are worth.

    A control that fell below the base by more than :data:`SLIGHT` points shows nothing. One that beats the tuned model
    turns the verdict to `hold`, since captions only are the better and cheaper choice; with `gate.over_control` so does
    a gain over the control that is not significant. `over` compares control and tuned model, `control` base and
    control.
    """
    comparison = replace(comparison, over_control=tuple(over), control=tuple(control))
    gains, verdict = _ruled(over, gate.metric), comparison.verdict
    if comparison.untrained or not gains:
        return comparison
    text = f"over the caption-only control {', '.join(map(_shown, gains))}"
    if fell := below_base(control, gate):
        text = (
            "the control is worthless as one, for the caption-only control fell below the base "
            f"({', '.join(map(_shown, fell))}) and what is gained over it says nothing (a lower "
            "value in finetune.learning_rate may mend it)"
        )
        # No gain over it may be reported.
        comparison = replace(comparison, over_control=())
    elif any(row.side < 0 for row in gains):
        text = (
            f"the paraphrases do not pay, for the caption-only control does better ({text}): take "
            "finetune.texts=captions"
        )
        verdict = "hold"
    elif any(row.side == 0 for row in gains):
        text += ", not clear of zero, so a gain may be that of more training"
    elif below := _below(control, gate):
        text += f", which counts the control's own fall below the base ({', '.join(map(_shown, below))})"
    if gate.over_control and (fell or any(row.side <= 0 for row in gains)):
        verdict = "hold"
    held = "held, as " if verdict != comparison.verdict else ""
    return replace(comparison, verdict=verdict, reason=f"{comparison.reason}; {held}{text}")


def below_base(control: Sequence[Row], gate: GateRule) -> list[Row]:
    """The figures by which a control fell so far below the base that what is gained over it says nothing."""
    # A margin also falls if hard negatives agree more, which does not invalidate a control.
    lost = [row for row, _ in _lost(control, gate) if row.metric != "margin" and row.side < 0]
    return [row for row in _below(control, gate) if row.gain[0] < -SLIGHT] + lost


def _below(control: Sequence[Row], gate: GateRule) -> list[Row]:
    return [row for row in _ruled(control, gate.metric) if row.side < 0]


def _untrained(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> str:
    """Why nothing can be measured with a base that finds captions' images no more often than chance; or empty."""
    pools = {outcome.benchmark: outcome.base.notes.get("images", 0) for outcome in outcomes}
    searches = [row for row in rows if row.metric in KNOWS and pools[row.benchmark] >= FEWEST_IMAGES]
    near: list[Row] = []
    for row in searches:
        chance, recall = RECALL_DEPTHS[-1] / pools[row.benchmark], row.base / 100
        # Three standard errors, which chance exceeds once in 700 times.
        if recall > chance + 3 * math.sqrt(chance * (1 - chance) / row.clusters):
            return ""
        # Twenty clicks that are not found among a million images are no sign of an untrained base.
        error = math.sqrt(max(recall * (1 - recall), 1 / row.clusters) / row.clusters)
        if recall + 3 * error < max(5 * chance, ABOVE_CHANCE):
            near.append(row)
    if not near:
        return ""
    row, images = near[0], pools[near[0].benchmark]
    return (
        f"the base is near chance, so nothing can be measured on it: {_name(row)} is {row.base:.1f}, and "
        f"{100 * RECALL_DEPTHS[-1] / images:.1f} by chance among {images:,} images; take a "
        "pretrained one that knows such captions"
    )


def _too_few(row: Row) -> str:
    """How many queries would show a change, if an interval around zero is too wide; or empty."""
    half, what = (row.high - row.low) / 2, find_benchmark(row.kind).resampled
    needed = images_needed(row.clusters, half)
    if row.side or row.facts.unit != "%" or needed <= row.clusters:
        return ""
    return (
        f"too few to tell: {row.clusters} {what} make ±{half:.1f} points of {_name(row)}, and a change of {GAIN:g} "
        f"needs about {needed:,} {what}"
    )


def _small_pools(outcomes: Sequence[Outcome]) -> list[str]:
    searches = [outcome for outcome in outcomes if find_benchmark(outcome.kind).searches_images]
    pools = {outcome.benchmark: outcome.base.notes.get("images", FEWEST_IMAGES) for outcome in searches}
    return [f"the {images} images of {name}" for name, images in pools.items() if images < FEWEST_IMAGES]


def _small_samples(rows: Sequence[Row], gate: GateRule) -> list[str]:
    few = [row for row in _ruled(rows, gate.metric) if row.clusters < FEWEST_QUERIES]
    return [f"the {row.clusters} {find_benchmark(row.kind).resampled} of {row.benchmark}" for row in few]


def _apply(
    rows: Sequence[Row], gate: GateRule, passes: Callable[[Row], bool], failed: str, passed: str
) -> tuple[Verdict, str, list[str]]:
    notes: list[str] = []
    gains = _ruled(rows, gate.metric)
    if not gains:
        return "hold", f"{_in_words(gate.metric)} was not measured, so nothing shows a gain; {_measured(rows)}", notes
    if (used := gains[0].rule) != gate.metric:
        notes.append(f"{used} stands in for the gate's {gate.metric}, which was not measured")
    worse = "above" if gains[0].facts.lower_is_better else "below"
    problems = [
        f"{_shown(row)} {(failed if row.side >= 0 else 'lies {worse} zero').format(worse=worse)}"
        for row in gains
        if not passes(row)
    ]
    for rule in sorted(gate.max_drop):
        ruled = _ruled(rows, rule, gate.max_drop)
        if not ruled and any(row.kind == rule.partition("/")[0] for row in rows):
            problems.append(f"the rule on {rule} names no measured metric; {_measured(rows)}")
        elif not ruled:
            notes.append(f"the rule on {rule} was not applied: it was not measured")
        elif (used := ruled[0].rule) != rule:
            notes.append(f"the rule on {rule} was applied to {used}: the former was not measured")
    lost = _lost(rows, gate)
    problems += [_loss(row, points) for row, points in lost]
    gained = ", ".join(map(_shown, gains))
    watched = [row for rule in sorted(gate.max_drop) for row in _ruled(rows, rule, gate.max_drop)]
    if any("recall" in row.metric and row.side < 0 for row, _ in lost) and all(row.side > 0 for row in gains):
        problems.append(f"{gained} with {', '.join(map(_shown, watched))}: {COLLAPSE}")
    if problems:
        return "hold", "; ".join(problems), notes
    # Losses that the rules allow have their own clause.
    beside = ", ".join(_shown(row) for row in watched if row.side >= 0)
    why = f"{gained} {passed.format(worse=worse)} and no other rule is broken"
    return "promote", f"{why}, with {beside}" if beside else why, notes


def _unguarded(rows: Sequence[Row], gate: GateRule) -> str:
    """Why nothing shows that agreement is not that of a collapse, if no rule on losses was applied; or empty."""
    if not gate.max_drop or any(_ruled(rows, rule, gate.max_drop) for rule in gate.max_drop):
        return ""
    margins = [row for row in rows if row.metric == "margin"]
    if fell := [row for row in margins if row.side < 0]:
        return f"{', '.join(map(_shown, fell))}, and no rule of evaluate.gate.max_drop was measured: {TELLS_NOTHING}"
    if margins:
        return ""
    return (
        f"nothing that a collapse would lower was measured: {TELLS_NOTHING}; add retrieval, or hard negatives to the "
        "query pairs"
    )


def _losses(rows: Sequence[Row], gate: GateRule) -> str:
    """What a model lost beyond `gate.max_drop`, in words."""
    return "; ".join(_loss(row, points) for row, points in _lost(rows, gate))


def _loss(row: Row, points: float) -> str:
    worse = "rose" if row.facts.lower_is_better else "fell"
    return f"{_name(row)} {worse} by {-row.gain[0]:.2f}, at most {points:g} is allowed"


def _lost(rows: Sequence[Row], gate: GateRule) -> list[tuple[Row, float]]:
    """The rows that lost more points than their rule allows."""
    return [
        (row, points)
        for rule, points in sorted(gate.max_drop.items())
        for row in _ruled(rows, rule, gate.max_drop)
        if -row.gain[0] > points
    ]


def _measured(rows: Sequence[Row]) -> str:
    """The metrics that a rule could name; those of a benchmark's parts are left out, for they are many."""
    rules = sorted({row.rule for row in rows if not row.facts.part})
    return f"measured: {', '.join(map(_in_words, rules)) or 'nothing'}"


def _in_words(rule: str) -> str:
    kind, _, metric = rule.partition("/")
    return f"{_lower(metric_of(kind, metric).words)} of the kind {kind}"


def _ruled(rows: Sequence[Row], rule: str, others: Collection[str] = ()) -> list[Row]:
    """The rows of a rule's metric or, if it was not measured, of its stand-in, unless another rule covers that."""
    stand_ins = [
        rule.replace(prefix, name, 1)
        for prefix, names in STAND_INS.items()
        if rule.startswith(prefix)
        for name in names
    ]
    measured = {row.rule for row in rows}
    named = next((name for name in (rule, *stand_ins) if name in measured), rule)
    return [row for row in rows if row.rule == named and (named == rule or named not in others)]


def _rows(outcome: Outcome) -> list[Row]:
    rows = []
    for metric, base in outcome.base.samples.items():
        tuned, scale = outcome.tuned.samples[metric], metric_of(outcome.kind, metric).scale
        try:
            interval = delta_interval(base, tuned)
        except BenchmarkError as error:
            raise BenchmarkError(f"benchmark {outcome.benchmark!r}, {metric}: {error}") from error
        values = (base.statistic(), tuned.statistic(), interval.delta, interval.low, interval.high)
        rounded = [round(scale * value, DIGITS) + 0.0 for value in values]  # adding 0 turns -0 into 0
        rows.append(
            Row(outcome.benchmark, outcome.kind, metric, *rounded, n=len(base.values), clusters=interval.clusters)
        )
    return rows


def _shown(row: Row) -> str:
    return f"{_name(row)} {_amount(row)}"


def _name(row: Row) -> str:
    return f"{_lower(row.facts.words)} of {row.benchmark}"


def _lower(words: str) -> str:
    """As within a sentence; an acronym keeps its case."""
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]
