"""The evidence of a verdict: figures of two models, and what is known of them besides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from paraclip_core.evaluation.benchmarks import find_benchmark
from paraclip_core.evaluation.options import GateRule
from paraclip_core.evaluation.rows import Outcome, Row

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


@dataclass(frozen=True)
class Evidence:
    """What a verdict is derived from. `rows` compare the model that it is about (`tuned`) with the one that it may
    replace (`base`)."""

    rows: tuple[Row, ...]
    gate: GateRule
    rival: str = "the base"
    """The model that may be replaced, in words."""
    images: Mapping[str, int] = field(default_factory=dict)
    """Images that a benchmark searches, by its name; without those that search none."""
    over_control: tuple[Row, ...] = ()
    """The same figures with the caption-only control as `base`; empty without one."""
    control: tuple[Row, ...] = ()
    """The same figures with the control as `tuned`."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Benchmarks that were left out → why."""
    alpha: float | None = None
    """The interpolation that fine-tuning chose; at 0 the tuned model is the base. None outside a run."""
    built_in_base: bool = False
    """Whether the base is one that the run trains itself."""
    champions_own: tuple[Row, ...] = ()
    """For a challenger: the champion's figures against its own base; empty if they are gone."""
    challengers_own: tuple[Row, ...] = ()

    @cached_property
    def gains(self) -> list[Row]:
        """The rows of the gate's metric or its stand-in; empty if neither was measured."""
        return ruled(self.rows, self.gate.metric)

    @cached_property
    def lost(self) -> list[tuple[Row, float]]:
        """The rows that lost more points than their rule allows, with what it allows."""
        return lost(self.rows, self.gate)

    @cached_property
    def watched(self) -> list[Row]:
        """The rows of all rules on losses."""
        return [row for rule in sorted(self.gate.max_drop) for row in ruled(self.rows, rule, self.gate.max_drop)]

    @cached_property
    def fallen_control(self) -> list[Row]:
        """The figures by which the control fell so far below the base that what is gained over it says nothing."""
        below = [row for row in self.slipped_control if row.gain[0] < -SLIGHT]
        # A margin also falls if hard negatives agree more, which does not invalidate a control.
        beyond = [row for row, _ in lost(self.control, self.gate) if row.metric != "margin" and row.side < 0]
        return below + beyond

    @cached_property
    def slipped_control(self) -> list[Row]:
        """The control's figures of the gate's metric that lie below the base, however little."""
        return [row for row in ruled(self.control, self.gate.metric) if row.side < 0]

    @property
    def shown_over_control(self) -> tuple[Row, ...]:
        """What is gained over the control; empty if that says nothing."""
        return () if self.fallen_control else self.over_control


def ruled(rows: Sequence[Row], rule: str, others: Collection[str] = ()) -> list[Row]:
    """The rows of a rule's metric or, if it was not measured, of its stand-in, unless another rule covers that."""
    stand_ins = [
        rule.replace(prefix, name, 1)
        for prefix, names in STAND_INS.items()
        if rule.startswith(prefix)
        for name in names
    ]
    measured = {row.rule for row in rows}
    used = next((name for name in (rule, *stand_ins) if name in measured), rule)
    return [row for row in rows if row.rule == used and (used == rule or used not in others)]


def lost(rows: Sequence[Row], gate: GateRule) -> list[tuple[Row, float]]:
    """The rows that lost more points than `gate.max_drop` allows, with what it allows."""
    return [
        (row, points)
        for rule, points in sorted(gate.max_drop.items())
        for row in ruled(rows, rule, gate.max_drop)
        if -row.gain[0] > points
    ]


def searched_images(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Number of images that each benchmark searches; those that search none, or do not say, are left out."""
    return {
        outcome.benchmark: outcome.base.notes["images"]
        for outcome in outcomes
        if find_benchmark(outcome.kind).searches_images and "images" in outcome.base.notes
    }
