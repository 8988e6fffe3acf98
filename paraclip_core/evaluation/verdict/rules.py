"""The rules of the promotion gate: each looks at the evidence and yields what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence

from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, find_benchmark, metric_of
from paraclip_core.evaluation.power import GAIN, images_needed
from paraclip_core.evaluation.rows import Row, listed, lower
from paraclip_core.evaluation.verdict.evidence import Evidence, lost, ruled
from paraclip_core.evaluation.verdict.finding import Effect, Finding

Rule = Callable[[Evidence], Iterable[Finding]]

ABOVE_CHANCE = 0.01
"""Share of found images from which a base is not near chance, however many images are searched."""
FEWEST_IMAGES = 20
"""In a smaller pool chance puts most images among the first ten, so overlaps and recall@10 prove nothing."""
FEWEST_QUERIES = 10
"""Of two or three queries the bootstrap has nothing to draw from: its interval lies above zero whenever all gain."""
KNOWS = tuple(f"{prefix}text_to_image_recall@{RECALL_DEPTHS[-1]}" for prefix in ("", "caption_"))
"""Figures that show whether a model knows its captions at all."""
HEADLINE = "paraphrased_query_text_to_image_recall@10"
"""The metric that a verdict begins with."""
ALIKE_AGREES = "an encoder that embeds all texts alike agrees"


# What nothing can be measured without.


def base_near_chance(evidence: Evidence) -> Iterable[Finding]:
    """A base that finds captions' images no more often than chance, in every benchmark that tells."""
    near: list[Row] = []
    for row in evidence.rows:
        images = evidence.images.get(row.benchmark, 0)
        if row.metric not in KNOWS or images < FEWEST_IMAGES:
            continue
        chance, recall = RECALL_DEPTHS[-1] / images, row.base / 100
        # Three standard errors, which chance exceeds once in 700 times.
        if recall > chance + 3 * math.sqrt(chance * (1 - chance) / row.clusters):
            return
        # Twenty clicks that are not found among a million images are no sign of an untrained base.
        error = math.sqrt(max(recall * (1 - recall), 1 / row.clusters) / row.clusters)
        if recall + 3 * error < max(5 * chance, ABOVE_CHANCE):
            near.append(row)
    if not near:
        return
    row, images = near[0], evidence.images[near[0].benchmark]
    longer = ", or train the built-in one longer (built_in_base.epochs, or a smaller built_in_base.batch_size)"
    text = (
        f"the base is near chance, so nothing can be measured on it: {row.name} is {row.base:.1f}, and "
        f"{100 * RECALL_DEPTHS[-1] / images:.1f} by chance among {images:,} images; take a pretrained one that knows "
        f"such captions{longer if evidence.built_in_base else ''}"
    )
    yield Finding("base_near_chance", "blocks", text, (row,))


# What a user sees.


def tuned_is_base(evidence: Evidence) -> Iterable[Finding]:
    """A choice of α = 0. Otherwise the user would see only that nothing differs."""
    if evidence.alpha == 0:
        text = (
            "the tuned model is the base (α = 0): no mixture with the trained weights gained without losing too much "
            "recall, so there is nothing to export"
        )
        yield Finding("tuned_is_base", "explains", text)


def found_images(evidence: Evidence) -> Iterable[Finding]:
    """What the figures mean to a user, in a sentence that needs no glossary."""
    for row in [row for row in evidence.rows if row.metric == HEADLINE][:1]:
        text = f"of 100 paraphrased queries {row.tuned:.0f} find their image among the first ten"
        yield Finding("found_images", "explains", f"{text} (before: {row.base:.0f})", (row,))


def margin_fell(evidence: Evidence) -> Iterable[Finding]:
    """A margin that fell significantly: queries of different meaning agree more, too."""
    fell = [(row, evidence.rival) for row in evidence.rows if _margin_fell(row)]
    fell += [(row, "the control") for row in evidence.shown_over_control if _margin_fell(row)]
    if fell:
        amounts = ", ".join(f"{row.amount} over {model} on {row.benchmark}" for row, model in fell)
        text = f"queries of different meaning agree more, too: the margin changes by {amounts}"
        yield Finding("margin_fell", "warns", text, tuple(row for row, _ in fell))


def _margin_fell(row: Row) -> bool:
    return row.metric == "margin" and row.side < 0


# The gate.


def gain(evidence: Evidence) -> Iterable[Finding]:
    """The interval of `gate.metric` has to lie above zero in every benchmark that has it."""
    if not (yield from _measured(evidence)):
        return
    rows = evidence.gains
    for row in rows:
        if row.side <= 0:
            where = "is not clear of zero" if row.side == 0 else _beyond_zero(row)
            yield Finding("no_gain" if row.side == 0 else "loss", "blocks", f"{row} {where}", (row,))
    if all(row.side > 0 for row in rows):
        yield Finding("gain", "promotes", f"{listed(rows)} is clear of zero", tuple(rows))


def challenge(evidence: Evidence) -> Iterable[Finding]:
    """No interval of `gate.metric` may lie below zero, and its mean must not be a loss.

    A challenger that breaks `gate.max_drop` against its own base is never promoted. A champion that breaks it holds no
    challenger back: a collapsed model answers all texts alike, so its agreement cannot be matched.
    """
    if broken := lost(evidence.challengers_own, evidence.gate):
        text = f"the challenger fails the gate against its own base: {_losses(broken)}"
        yield Finding("challenger_fails", "blocks", text, _rows(broken))
        return
    if broken := lost(evidence.champions_own, evidence.gate):
        text = f"the champion fails the gate against its own base ({_losses(broken)}), so its agreement holds nobody"
        yield Finding("champion_fails", "promotes", text, _rows(broken))
        return
    if (yield from _measured(evidence)):
        rows = evidence.gains
        worse = [row for row in rows if row.side < 0]
        for row in worse:
            yield Finding("loss", "blocks", f"against the champion, {row} {_beyond_zero(row)}", (row,))
        if not worse and sum(row.gain[0] for row in rows) < 0:
            # It may be noise, but the next challenger is measured against it, and such steps add up to a slide.
            text = f"against the champion, {listed(rows)} is a step down, though one that may be noise"
            yield Finding("step_down", "blocks", text, tuple(rows))
        elif not worse:
            text = f"against the champion, {listed(rows)} does not lie {_beyond_zero(rows[0], verb='')}"
            yield Finding("not_worse", "promotes", text, tuple(rows))
    yield from losses(evidence)


def _measured(evidence: Evidence) -> Generator[Finding, None, bool]:
    """Whether the gate's metric or a stand-in was measured, and what a reader must know of it."""
    metric, rows = evidence.gate.metric, evidence.gains
    if not rows:
        text = f"{_in_words(metric)} was not measured, so nothing shows a gain; {_all_measured(evidence.rows)}"
        yield Finding("metric_not_measured", "blocks", text)
    elif rows[0].rule != metric:
        text = f"{rows[0].rule} stands in for the gate's {metric}, which was not measured"
        yield Finding("metric_stand_in", "notes", text)
    return bool(rows)


def losses(evidence: Evidence) -> Iterable[Finding]:
    """No metric may lose more points than `gate.max_drop` allows.

    A rule whose metric was not measured uses its stand-in. Without one, a rule whose kind was not measured is noted; if
    only the metric is missing, it blocks, because that benchmark's losses are unknown.
    """
    for rule in sorted(evidence.gate.max_drop):
        rows = ruled(evidence.rows, rule, evidence.gate.max_drop)
        if not rows and any(row.kind == rule.partition("/")[0] for row in evidence.rows):
            text = f"the rule on {rule} names no measured metric; {_all_measured(evidence.rows)}"
            yield Finding("rule_without_metric", "blocks", text)
        elif not rows:
            yield Finding("rule_not_applied", "notes", f"the rule on {rule} was not applied: it was not measured")
        elif rows[0].rule != rule:
            text = f"the rule on {rule} was applied to {rows[0].rule}: the former was not measured"
            yield Finding("rule_stand_in", "notes", text)
    for row, points in evidence.lost:
        yield Finding("beyond_max_drop", "blocks", _loss(row, points), (row,))
    # What was lost within the rules is among the significant losses, if it is one.
    sound = [row for row in evidence.watched if row.side >= 0]
    if sound and not evidence.lost:
        yield Finding("no_rule_broken", "explains", f"no other rule is broken, with {listed(sound)}", tuple(sound))


def collapse(evidence: Evidence) -> Iterable[Finding]:
    """Agreement that rises while recall falls, or that nothing else confirms, is no gain.

    If no rule on losses was applied, a margin has to show that the encoder does not collapse: it must not fall.
    """
    if not evidence.gains or any(row.side <= 0 for row in evidence.gains):
        return
    if any("recall" in row.metric and row.side < 0 for row, _ in evidence.lost):
        text = f"agreement up and recall down is what a collapse looks like, because {ALIKE_AGREES}"
        yield Finding("collapse", "blocks", text)
    if evidence.watched or not evidence.gate.max_drop:
        return
    margins = [row for row in evidence.rows if row.metric == "margin"]
    if fell := [row for row in margins if row.side < 0]:
        text = f"{listed(fell)}, and no rule of evaluate.gate.max_drop was measured: {ALIKE_AGREES}"
        yield Finding("only_margin_fell", "blocks", text, tuple(fell))
    elif not margins:
        text = (
            f"nothing that a collapse would lower was measured: {ALIKE_AGREES}; add retrieval, or hard negatives to "
            "the query pairs"
        )
        yield Finding("nothing_shows_collapse", "blocks", text)


def few_images(evidence: Evidence) -> Iterable[Finding]:
    """Pools in which chance finds most images."""
    small = [f"the {images} images of {name}" for name, images in evidence.images.items() if images < FEWEST_IMAGES]
    if small:
        text = f"{', '.join(small)} prove nothing; use a split of {FEWEST_IMAGES} images or more"
        yield Finding("few_images", "blocks", text)


def few_queries(evidence: Evidence) -> Iterable[Finding]:
    """Samples too small for a bootstrap."""
    few = [row for row in evidence.gains if row.clusters < FEWEST_QUERIES]
    if few:
        small = ", ".join(f"the {row.clusters} {find_benchmark(row.kind).resampled} of {row.benchmark}" for row in few)
        text = f"{small} prove nothing; use {FEWEST_QUERIES} or more"
        yield Finding("few_queries", "blocks", text, tuple(few))


# What else a reader must know.


def significant_losses(evidence: Evidence) -> Iterable[Finding]:
    """Every loss that no other finding names."""
    measured = {(row.benchmark, row.metric) for row in evidence.rows}
    named = [*evidence.gains, *_rows(evidence.lost)]
    rows = [
        row
        for row in evidence.rows
        if row.side < 0
        and row not in named
        and row.metric != "margin"
        and (row.benchmark, row.facts.weighed_by) not in measured
    ]
    if rows:
        yield Finding("significant_losses", "warns", f"significant losses: {listed(rows)}", tuple(rows))


def over_control(evidence: Evidence) -> Iterable[Finding]:
    """The gain over the caption-only control is what the paraphrases are worth.

    A control that fell below the base shows nothing. One that beats the tuned model blocks, because captions only are
    the better and cheaper choice; with `gate.over_control` so does a gain over it that is not significant.
    """
    rows = ruled(evidence.over_control, evidence.gate.metric)
    if not rows:
        return
    required: Effect = "blocks" if evidence.gate.over_control else "explains"
    text = f"over the caption-only control {listed(rows)}"
    if fell := evidence.fallen_control:
        why = (
            f"the caption-only control fell below the base ({listed(fell)}), so what is gained over it says nothing (a "
            "lower value in finetune.learning_rate may mend it)"
        )
        yield Finding("control_fell", required, why, tuple(fell))
    elif any(row.side < 0 for row in rows):
        why = f"the paraphrases do not pay: {text}, so captions only do better; take finetune.texts=captions"
        yield Finding("control_better", "blocks", why, tuple(rows))
    elif any(row.side == 0 for row in rows):
        why = f"{text}, not clear of zero, so a gain may be that of more training"
        yield Finding("control_as_good", required, why, tuple(rows))
    else:
        slipped = evidence.slipped_control
        own = f", which counts the control's own fall below the base ({listed(slipped)})" if slipped else ""
        yield Finding("over_control", "explains", text + own, tuple(rows))


def left_out(evidence: Evidence) -> Iterable[Finding]:
    """Benchmarks that were left out."""
    for name, why in evidence.skipped.items():
        yield Finding("left_out", "notes", f"{name} was left out: {why}")


# What would change a verdict of *hold*.


def too_few(evidence: Evidence) -> Iterable[Finding]:
    """How many queries would show a change, for each interval around zero that is too wide to tell."""
    for row in (*evidence.gains, *_rows(evidence.lost)):
        half, queries = (row.high - row.low) / 2, find_benchmark(row.kind).resampled
        needed = images_needed(row.clusters, half)
        if row.side or row.facts.unit != "%" or needed <= row.clusters:
            continue
        text = (
            f"too few to tell: {row.clusters} {queries} make ±{half:.1f} points of {row.name}, and a change of "
            f"{GAIN:g} needs about {needed:,} {queries}"
        )
        yield Finding("too_few", "explains", text, (row,))


def remedy(evidence: Evidence) -> Iterable[Finding]:
    """The one thing that would change a *hold* that enough images confirm."""
    if any(too_few(evidence)):
        return
    gains, advice = evidence.gains, None
    if any(row.side <= 0 for row in gains):
        advice = "more captions, or paraphrases of a more capable model (docs/training.md)"
    elif gains and evidence.lost:
        row, points = evidence.lost[0]
        advice = (
            f"a smaller α (finetune.alpha.grid), or more than {points:g} points for {row.rule} in "
            "evaluate.gate.max_drop, if the gain is worth the loss"
        )
    elif not gains:
        kind = evidence.gate.metric.partition("/")[0]
        advice = f"a benchmark of the kind {kind} (evaluate.benchmarks, or --benchmark outside a run)"
    if advice:
        yield Finding("remedy", "explains", f"what would change it: {advice}")


def _beyond_zero(row: Row, verb: str = "lies ") -> str:
    return f"{verb}{'above' if row.facts.lower_is_better else 'below'} zero"


def _rows(broken: Sequence[tuple[Row, float]]) -> tuple[Row, ...]:
    return tuple(row for row, _ in broken)


def _losses(broken: Sequence[tuple[Row, float]]) -> str:
    return ", ".join(_loss(row, points) for row, points in broken)


def _loss(row: Row, points: float) -> str:
    worse = "rose" if row.facts.lower_is_better else "fell"
    return f"{row.name} {worse} by {-row.gain[0]:.2f}, at most {points:g} is allowed"


def _all_measured(rows: Sequence[Row]) -> str:
    """The metrics that a rule could name; those of a benchmark's parts are left out, there are many."""
    rules = sorted({row.rule for row in rows if not row.facts.part})
    return f"measured: {', '.join(map(_in_words, rules)) or 'nothing'}"


def _in_words(rule: str) -> str:
    kind, _, metric = rule.partition("/")
    return f"{lower(metric_of(kind, metric).words)} of the kind {kind}"
