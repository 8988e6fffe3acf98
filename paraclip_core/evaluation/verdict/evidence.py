"""The evidence of a verdict: figures of two models, and what is known of them besides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from paraclip_core.evaluation.benchmarks import find_benchmark
from paraclip_core.evaluation.options import RECALL_LOSS, GateRule
from paraclip_core.evaluation.power import loss_z, shown_loss
from paraclip_core.evaluation.rows import Outcome, Row

STAND_INS = {
    "query_pairs/": ("paraphrased_retrieval/", "query_log/"),
    "paraphrased_retrieval/": ("query_log/", "query_pairs/"),
    "retrieval/text_to_image": ("paraphrased_retrieval/caption_text_to_image",),
}
"""Prefixes of rules → their stand-ins, of which the first that was measured counts."""
SLIGHT = 0.5
"""Points of the gate's metric below the base from which a control shows nothing: what is gained over it is larger than
what is gained over the base by as much."""


@dataclass(frozen=True)
class Guard:
    """A figure that must not fall: by how many points it may, and what the set can show."""

    row: Row
    points: float
    figures: int = 1
    """How many are guarded together, by which chance has as many tries."""

    @property
    def broken(self) -> bool:
        """Whether the figure fell, and may have fallen by more than its points: the interval lies below zero and
        reaches below them."""
        gain, half = self.row.gain[0], loss_z(self.figures) * self.row.error
        return gain + half < 0 and gain - half < -self.points

    @property
    def shows(self) -> float:
        """The loss in points that the set shows four times out of five."""
        return shown_loss(self.row.error, self.figures)


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
    different_images: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """How many images are among the first ten of any query, of the base and of the tuned model, by benchmark."""
    over_control: tuple[Row, ...] = ()
    """The same figures with the caption-only control as `base`; empty without one."""
    control: tuple[Row, ...] = ()
    """The same figures with the control as `tuned`."""
    control_at_point: str | None = None
    """What the control gained where the tuned model was chosen, in words."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Benchmarks that were left out → why."""
    alpha: float | None = None
    """The interpolation that fine-tuning chose; at 0 the tuned model is the base. None outside a run."""
    built_in_base: bool = False
    """Whether the base is one that the run trains itself."""
    independent_clicks: bool = False
    """Whether a log's clicks were made on another system's results. Of what the base itself showed, the base finds
    nearly all, so such clicks guard nothing."""
    first_image_changes: float | None = None
    """Percentage of queries that show another first image than with the model that may be replaced."""
    new_captions: float | None = None
    """For a challenger: the percentage of its training captions that the champion was not trained on, if known."""
    champions_own: tuple[Row, ...] = ()
    """For a challenger: the champion's figures against its own base; empty if they are gone."""
    challengers_own: tuple[Row, ...] = ()

    @cached_property
    def gains(self) -> list[Row]:
        """The rows of the gate's metric or its stand-in; empty if neither was measured."""
        return ruled(self.rows, self.gate.metric)

    @cached_property
    def guards(self) -> list[Guard]:
        """What must not fall: the rows of `gate.max_drop`, and every recall of images that are known."""
        return self.guards_of(self.rows)

    @cached_property
    def broken(self) -> list[Guard]:
        return [guard for guard in self.guards if guard.broken]

    @cached_property
    def recalls(self) -> list[Row]:
        """What users feel: how often a text finds its image, wherever this is known."""
        return _recalls(self.counted(self.rows))

    def guards_of(self, rows: Sequence[Row]) -> list[Guard]:
        """The guards among the figures of any model."""
        counted, points = self.counted(rows), self.gate.max_drop
        allowed = dict.fromkeys(_recalls(counted), RECALL_LOSS)
        allowed |= {row: points[rule] for rule in points for row in ruled(counted, rule, points)}
        return [Guard(row, allowed[row], len(allowed)) for row in rows if row in allowed]

    @cached_property
    def fallen_control(self) -> list[Row]:
        """The figures by which the control fell so far below the base that what is gained over it says nothing."""
        below = [row for row in self.slipped_control if row.gain[0] < -SLIGHT]
        # A margin also falls if hard negatives agree more, which does not invalidate a control.
        beyond = [guard.row for guard in self.guards_of(self.control) if guard.broken and guard.row.metric != "margin"]
        return below + beyond

    @cached_property
    def slipped_control(self) -> list[Row]:
        """The control's figures of the gate's metric that lie below the base, however little."""
        return [row for row in ruled(self.control, self.gate.metric) if row.side < 0]

    @property
    def shown_over_control(self) -> tuple[Row, ...]:
        """What is gained over the control; empty if that says nothing."""
        return () if self.fallen_control else self.over_control

    def counted(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that judge a model: all but those of clicks on what the base showed."""
        return [row for row in rows if self.independent_clicks or not clicked(row)]


def _recalls(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "text_to_image_recall@" in row.metric and not row.facts.part]


def clicked(row: Row) -> bool:
    """Whether the figure is about images that were clicked."""
    return row.kind == "query_log" and ("recall@" in row.metric or "mrr@" in row.metric)


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


def searched_images(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Number of images that each benchmark searches; those that search none, or do not say, are left out."""
    return {
        outcome.benchmark: outcome.base.notes["images"]
        for outcome in outcomes
        if find_benchmark(outcome.kind).searches_images and "images" in outcome.base.notes
    }


def different_images(outcomes: Sequence[Outcome]) -> dict[str, tuple[int, int]]:
    """How many different images each benchmark's first tens hold, with the base and the tuned model."""
    name = "different_images"
    return {
        outcome.benchmark: (outcome.base.notes[name], outcome.tuned.notes[name])
        for outcome in outcomes
        if name in outcome.base.notes and name in outcome.tuned.notes
    }
