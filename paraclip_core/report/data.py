"""The contents of the report page as plain values, built from artifacts or by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paraclip_core.evaluation.churn import Churn
    from paraclip_core.evaluation.rows import Row


@dataclass(frozen=True)
class QueryPair:
    """A query and its paraphrase, with the images that each model finds for them, best first."""

    image_id: str
    """The image that both describe."""
    caption: str
    paraphrased_query: str
    base_overlap: float
    """AO@10 of the two lists, 0 to 1."""
    tuned_overlap: float
    base_caption: Sequence[str]
    base_paraphrased: Sequence[str]
    tuned_caption: Sequence[str]
    tuned_paraphrased: Sequence[str]


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
    """A rejected text: its source and the text itself."""

    text: str
    detail: str
    answer: str | None = None


@dataclass(frozen=True)
class RejectGroup:
    """Rejected rows of one stage with the same reason."""

    stage: str
    reason: str
    count: int
    samples: Sequence[RejectSample]


@dataclass(frozen=True)
class StageRow:
    """A stage of the run, from which a part of the result comes."""

    name: str
    fingerprint: str
    files: int
    size: int
    """Bytes."""
    inputs: Mapping[str, str]
    options: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class License:
    """How much of the data has a given license."""

    name: str
    captions: int
    paraphrased: int
    """Paraphrase pairs; a caption may have several."""


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. All texts are untrusted and shown as text."""

    name: str
    verdict: str
    """``promote`` or ``hold``."""
    reasons: Sequence[str]
    """The most important first."""
    comparison: Sequence[Row]
    finetune: str = ""
    """Fingerprint of the tuned model; empty if no run made it."""
    image_encoder_before: str = ""
    image_encoder_after: str = ""
    over_control: Sequence[Row] = ()
    """The same figures with the caption-only control as `base`; empty without one."""
    control: Sequence[Row] = ()
    """The same figures with the control as `tuned`."""
    untrained: bool = False
    """Whether the base is near chance, so that no figure is meaningful."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was trained on what, when and how, each in a few words."""
    settings: str = ""
    """The run's non-default options as YAML."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The protocol of each benchmark (:attr:`paraclip_core.evaluation.base.Measured.notes`)."""
    confidence: float = 0.95
    notes: Sequence[str] = ()
    """What was left out and why."""
    funnel: Sequence[tuple[str, int]] = ()
    """Counts of rows on their way from source files to training."""
    losses: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Step and loss of each training, by stage."""
    candidates: Mapping[str, Any] | None = None
    """``candidates.json``: what every recipe and learning rate finds at each α, and the choice."""
    churn: Churn | None = None
    """What changes for the same queries; None if it was not measured."""
    better: Sequence[QueryPair] = ()
    worse: Sequence[QueryPair] = ()
    paraphrases: Sequence[ParaphraseSample] = ()
    rejects: Sequence[RejectGroup] = ()
    stages: Sequence[StageRow] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    licenses: Sequence[License] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    """A small JPEG of each image shown, by its id."""
