"""What the report page shows, as plain values: it can be built from artifacts or by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paraclip_core.licences import RolledUp, roll_up
from paraclip_core.metric_names import lower_is_better

__all__ = [
    "Comparison", "Licence", "ParaphraseSample", "QueryPair", "RejectGroup", "RejectSample", "ReportData", "StageRow",
    "Training",
]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One figure of both models. Figures are percentages, differences are points."""

    benchmark: str
    metric: str
    base: float
    tuned: float
    delta: float
    low: float | None
    """Lower end of the delta's interval; None where there is none."""
    high: float | None
    n: int | None
    """Number of queries."""

    @property
    def clear(self) -> int:
        """1 where the interval shows a gain, -1 where it shows a loss, 0 where it holds zero or is unknown."""
        if self.low is None or self.high is None:
            return 0
        side = 1 if self.low > 0 else -1 if self.high < 0 else 0
        return -side if lower_is_better(self.metric) else side


@dataclass(frozen=True)
class Training:
    """The log of one training: lines with ``step`` and either ``loss`` or ``validation``."""

    name: str
    lines: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class QueryPair:
    """Two wordings of one meaning and the images that each model finds for them, best first."""

    image_id: str
    """The image that both tell of."""
    caption: str
    rewording: str
    base_overlap: float
    """AO@10 of both lists, 0 to 1."""
    tuned_overlap: float
    base_caption: Sequence[str]
    base_rewording: Sequence[str]
    tuned_caption: Sequence[str]
    tuned_rewording: Sequence[str]


@dataclass(frozen=True)
class ParaphraseSample:
    """A caption with its accepted paraphrases."""

    image_id: str | None
    caption: str
    paraphrase_1: str
    paraphrase_2: str
    similarity_1: float | None = None
    similarity_2: float | None = None


@dataclass(frozen=True)
class RejectSample:
    """A rejected text: what it was made from, and what was made."""

    text: str
    detail: str
    answer: str | None = None


@dataclass(frozen=True)
class RejectGroup:
    """Rejected rows of one stage with one reason."""

    stage: str
    reason: str
    count: int
    samples: Sequence[RejectSample]


@dataclass(frozen=True)
class StageRow:
    """Where a part of the result came from."""

    name: str
    fingerprint: str
    files: int
    size: int
    """Bytes."""
    inputs: Mapping[str, str]
    options: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Licence:
    """How much of the data has a licence."""

    name: str
    captions: int
    paraphrased: int
    """Pairs of paraphrases, of which a caption may have several."""


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. All texts are untrusted and shown as text."""

    name: str
    verdict: str
    """``promote`` or ``hold``."""
    reasons: Sequence[str]
    comparison: Sequence[Comparison]
    finetune: str
    """Fingerprint of the tuned model."""
    image_tower_before: str = ""
    image_tower_after: str = ""
    confidence: float = 0.95
    notes: Sequence[str] = ()
    """What was left out and why."""
    funnel: Sequence[tuple[str, int]] = ()
    """Counts of rows on their way from source files to training."""
    trainings: Sequence[Training] = ()
    alpha_sweep: Mapping[str, Any] | None = None
    """``alpha_sweep.json``."""
    better: Sequence[QueryPair] = ()
    worse: Sequence[QueryPair] = ()
    paraphrases: Sequence[ParaphraseSample] = ()
    rejects: Sequence[RejectGroup] = ()
    stages: Sequence[StageRow] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    licences: Sequence[Licence] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    """Small JPEG of each image that is shown, by its id."""

    @property
    def strictest(self) -> RolledUp:
        """The strictest of the licences that rows with paraphrases are under."""
        return roll_up({licence.name: licence.paraphrased for licence in self.licences if licence.paraphrased})
