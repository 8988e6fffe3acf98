"""The rules of the promotion gate: each looks at the evidence and yields what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence

from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, find_benchmark, metric_of
from paraclip_core.evaluation.pairs import CORRECTED
from paraclip_core.evaluation.power import GAIN, images_needed
from paraclip_core.evaluation.rows import Row, listed, lower
from paraclip_core.evaluation.verdict.evidence import Evidence, Guard, ruled
from paraclip_core.evaluation.verdict.finding import Finding

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
STEP, ERRORS = 1.0, 3.0
"""Points and standard errors of a gain for which production moves to a challenger: the step of the Ladder (Blum & Hardt
2015), by which trying night after night on held-out queries selects no noise."""
REFRESH = 20.0
"""Percentage of captions new to the champion from which a challenger replaces it without a gain."""


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
        text = f"{row.tuned:.1f} of 100 paraphrased queries of {row.benchmark} find their image among the first ten "
        text += f"({row.delta:+.1f})"
        if not evidence.counted([row]):
            text += ", counted by clicks on what the base showed, which guard nothing"
        yield Finding("found_images", "explains", text, (row,))
    if evidence.first_image_changes is not None:
        text = f"{evidence.first_image_changes:.0f} of 100 queries show another first image than with {evidence.rival}"
        yield Finding("first_images", "explains", text)
    for name, (base, tuned) in list(evidence.different_images.items())[:1]:
        text = f"the first tens of {name} hold {tuned:,} different images ({base:,} with {evidence.rival})"
        yield Finding("different_images", "notes", text)


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
    """The interval of `gate.metric` has to lie above zero in every benchmark that has it.

    If the images of paraphrased queries are known, they may be found more often instead, while agreement holds.
    """
    if not (yield from _measured(evidence)):
        return
    rows, recalls = evidence.gains, [row for row in evidence.recalls if row.metric == HEADLINE]
    if recalls and all(row.side > 0 for row in recalls) and all(row.side >= 0 for row in rows):
        text = f"{listed(recalls)} is clear of zero, with {listed(rows)}"
        yield Finding("finds_more", "promotes", text, tuple(recalls))
        return
    for row in rows:
        if row.side <= 0:
            where = "is not clear of zero" if row.side == 0 else _beyond_zero(row)
            yield Finding("no_gain" if row.side == 0 else "loss", "blocks", f"{row} {where}", (row,))
    if all(row.side > 0 for row in rows):
        yield Finding("gain", "promotes", f"{listed(rows)} is clear of zero", tuple(rows))
        if not recalls:
            text = "the images of paraphrased queries are not known, so agreement alone decides"
            yield Finding("agreement_alone", "explains", text)


def challenge(evidence: Evidence) -> Iterable[Finding]:
    """A champion yields to a gain of a step, or to a challenger that is not worse if much of what it was trained on is
    new.

    A challenger that breaks a guard against its own base is never promoted. A champion that breaks one yields to any
    challenger that loses nothing guarded: a collapsed model answers all texts alike, so agreement with it is no
    measure.
    """
    if broken := [guard for guard in evidence.guards_of(evidence.challengers_own) if guard.broken]:
        text = f"the challenger fails the gate against its own base: {_losses(broken)}"
        yield Finding("challenger_fails", "blocks", text, _rows(broken))
        return
    if broken := [guard for guard in evidence.guards_of(evidence.champions_own) if guard.broken]:
        text = f"the champion fails the gate against its own base ({_losses(broken)}), so its agreement holds nobody"
        yield Finding("champion_fails", "promotes", text, _rows(broken))
    elif (yield from _measured(evidence)):
        rows, new = evidence.gains, evidence.new_captions
        worse = [row for row in rows if Guard(row, STEP).broken]
        for row in worse:
            yield Finding("loss", "blocks", f"against the champion, {row} {_beyond_zero(row)}", (row,))
        if all(row.gain[0] >= max(STEP, ERRORS * row.error) for row in rows):
            text = f"against the champion, {listed(rows)} is a gain of {STEP:g} point and {ERRORS:g} standard errors"
            yield Finding("step", "promotes", text, tuple(rows))
        elif new is not None and new >= REFRESH and not worse:
            text = f"{new:.0f} % of the captions are new to the champion, and {listed(rows)} is not worse"
            yield Finding("refresh", "promotes", text, tuple(rows))
        elif not worse:
            text = (
                f"against the champion, {listed(rows)} is no gain of {STEP:g} point and {ERRORS:g} standard errors, "
                "for which users would see other images"
            )
            yield Finding("no_step", "blocks", text, tuple(rows))
    yield from losses(evidence)


def churned(evidence: Evidence) -> Iterable[Finding]:
    """No more queries than `gate.max_first_image_changes` allows may show another first image."""
    changes, most = evidence.first_image_changes, evidence.gate.max_first_image_changes
    if most is None:
        return
    if changes is None:
        text = "evaluate.gate.max_first_image_changes is set, but no benchmark has queries that search images"
        yield Finding("churn_not_measured", "blocks", text)
    elif changes > most:
        text = f"{changes:.0f} of 100 queries show another first image than with {evidence.rival}, at most {most:g} may"
        yield Finding("churn", "blocks", text)


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
    """No guarded figure may be shown to fall by a loss that may be larger than what is allowed.

    A rule of `gate.max_drop` whose metric was not measured uses its stand-in. Without one, a rule whose kind was not
    measured is noted; if only the metric is missing, it blocks, because that benchmark's losses are unknown.
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
    for guard in evidence.broken:
        yield Finding("beyond_max_drop", "blocks", _loss(guard), (guard.row,))
    blunt = [guard for guard in evidence.guards if guard.shows > guard.points and not guard.broken]
    if blunt:
        most = max(blunt, key=lambda guard: guard.shows)
        text = f"so few {find_benchmark(most.row.kind).resampled} show a loss of {most.row.name} from {most.shows:.1f} "
        text += f"points on, where {most.points:g} is allowed"
        yield Finding("blunt_guard", "notes", text, tuple(guard.row for guard in blunt))
    # What may be lost is among the losses below, if it is one.
    sound = [guard.row for guard in evidence.guards if guard.row.side >= 0]
    if sound and not evidence.broken:
        lowest = min(sound, key=lambda row: row.gain[1])
        text = f"none of {len(evidence.guards)} guarded figures is lost, the lowest of them {lowest}"
        yield Finding("no_rule_broken", "explains", text, tuple(sound))


def collapse(evidence: Evidence) -> Iterable[Finding]:
    """Agreement that rises no more than that of unrelated queries is a collapse, not a gain.

    If nothing was measured that is guarded, a margin must not fall.
    """
    if not evidence.gains or any(row.side <= 0 for row in evidence.gains):
        return
    gained = {row.benchmark for row in evidence.gains}
    alike = [row for row in evidence.rows if row.metric == CORRECTED and row.benchmark in gained and row.side <= 0]
    if alike:
        text = f"unrelated queries agree more, too: {listed(alike)} is not clear of zero"
        yield Finding("collapse", "blocks", text, tuple(alike))
    margins = [row for row in evidence.rows if row.metric == "margin" and row.side < 0]
    if margins and not evidence.guards:
        text = f"{listed(margins)}, and nothing that evaluate.gate guards was measured"
        yield Finding("only_margin_fell", "blocks", text, tuple(margins))


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
    """Every loss that judges the model and that no other finding names."""
    measured = {(row.benchmark, row.metric) for row in evidence.rows}
    guarded = [guard.row for guard in evidence.guards]
    lost = [row for row in evidence.counted(evidence.rows) if row.side < 0]
    rows = [
        row
        for row in lost
        if row not in (*evidence.gains, *guarded)
        and row.metric != "margin"
        and (row.benchmark, row.facts.weighed_by) not in measured
    ]
    if rows:
        yield Finding("significant_losses", "warns", f"significant losses: {listed(rows)}", tuple(rows))
    if small := [guard.row for guard in evidence.guards if guard.row.side < 0 and not guard.broken]:
        text = f"within what is allowed, or what chance gives one of {len(guarded)} figures: {listed(small)}"
        yield Finding("small_losses", "warns", text, tuple(small))


def over_control(evidence: Evidence) -> Iterable[Finding]:
    """The gain over the caption-only control is what the paraphrases are worth, and has to be clear of zero.

    A control that fell below the base shows nothing.
    """
    rows = ruled(evidence.over_control, evidence.gate.metric)
    if not rows:
        return
    text = f"over the caption-only control {listed(rows)}"
    if fell := evidence.fallen_control:
        why = (
            f"the caption-only control fell below the base ({listed(fell)}), so what is gained over it says nothing (a "
            "lower value in finetune.learning_rate may mend it)"
        )
        yield Finding("control_fell", "blocks", why, tuple(fell))
    elif any(row.side < 0 for row in rows):
        why = f"the paraphrases do not pay: {text}, so captions only do better; take finetune.texts=captions"
        yield Finding("control_better", "blocks", why, tuple(rows))
    elif any(row.side == 0 for row in rows):
        why = f"{text}, not clear of zero, so a gain may be that of more training"
        yield Finding("control_as_good", "blocks", why, tuple(rows))
    else:
        slipped = evidence.slipped_control
        own = f", which counts the control's own fall below the base ({listed(slipped)})" if slipped else ""
        yield Finding("over_control", "explains", text + own, tuple(rows))
    if evidence.control_at_point:
        yield Finding("control_at_point", "explains", evidence.control_at_point)


def left_out(evidence: Evidence) -> Iterable[Finding]:
    """Benchmarks that were left out."""
    for name, why in evidence.skipped.items():
        yield Finding("left_out", "notes", f"{name} was left out: {why}")


# What would change a verdict of *hold*.


def too_few(evidence: Evidence) -> Iterable[Finding]:
    """How many queries would show a change, for each interval around zero that is too wide to tell."""
    for row in (*evidence.gains, *_rows(evidence.broken)):
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
    elif gains and evidence.broken:
        guard = evidence.broken[0]
        advice = (
            f"a smaller α (finetune.alpha.grid), or more than {guard.points:g} points for {guard.row.rule} in "
            "evaluate.gate.max_drop, if the gain is worth the loss"
        )
    elif not gains:
        kind = evidence.gate.metric.partition("/")[0]
        advice = f"a benchmark of the kind {kind} (evaluate.benchmarks, or --benchmark outside a run)"
    if advice:
        yield Finding("remedy", "explains", f"what would change it: {advice}")


def _beyond_zero(row: Row, verb: str = "lies ") -> str:
    return f"{verb}{'above' if row.facts.lower_is_better else 'below'} zero"


def _rows(guards: Sequence[Guard]) -> tuple[Row, ...]:
    return tuple(guard.row for guard in guards)


def _losses(broken: Sequence[Guard]) -> str:
    return ", ".join(map(_loss, broken))


def _loss(guard: Guard) -> str:
    row = guard.row
    worse = "rose" if row.facts.lower_is_better else "fell"
    return f"{row.name} {worse} by {-row.gain[0]:.2f} ({row.amount}), at most {guard.points:g} is allowed"


def _all_measured(rows: Sequence[Row]) -> str:
    """The metrics that a rule could name; those of a benchmark's parts are left out, there are many."""
    rules = sorted({row.rule for row in rows if not row.facts.part})
    return f"measured: {', '.join(map(_in_words, rules)) or 'nothing'}"


def _in_words(rule: str) -> str:
    kind, _, metric = rule.partition("/")
    return f"{lower(metric_of(kind, metric).words)} of the kind {kind}"
