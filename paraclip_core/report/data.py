"""What the report page shows, as plain values: it can be built from artifacts or by hand.

Also how many captions were asked about, kept and trained on: the counts that a run's table, page and verdict state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paraclip_core.evaluation.metrics import GAIN, expected_half

if TYPE_CHECKING:
    from paraclip_core.evaluation.compare import Row


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
class License:
    """How much of the data has a license."""

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
    """The first says most."""
    comparison: Sequence[Row]
    finetune: str = ""
    """Fingerprint of the tuned model; empty where no run of ours made it."""
    image_tower_before: str = ""
    image_tower_after: str = ""
    over_control: Sequence[Row] = ()
    """The same figures with a model that was tuned on captions alone as `base`; none without one."""
    control: Sequence[Row] = ()
    """The same figures with that model as `tuned`."""
    untrained: bool = False
    """Whether the base is near chance, so that no figure says anything."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was trained on what, when and how, in a few words each."""
    settings: str = ""
    """The run's options as YAML, where they are not the usual ones."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each benchmark counted over what (:attr:`paraclip_core.evaluation.run.Measured.notes`)."""
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
    licenses: Sequence[License] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    """Small JPEG of each image that is shown, by its id."""


def row_totals(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Count a run's rows on their way into training, by what the manifest of each stage measured.

    `asked`: captions that step 1 looked at. `kept`: those of them with an accepted pair after step 2. `rewrites`: rows
    of these captions, only where some have several. `trained_on`: captions in an epoch of fine-tuning. What no manifest
    states is left out.
    """
    first, second, tuned = (metrics.get(stage, {}) for stage in ("paraphrase_1", "paraphrase_2", "finetune"))
    totals = {"asked": first.get("captions"), "kept": second.get("accepted"), "trained_on": tuned.get("rows")}
    if second.get("kept", 0) > second.get("accepted", 0):
        totals["rewrites"] = second["kept"]
    return {name: int(count) for name, count in totals.items() if count is not None}


def shares_of_asked(totals: Mapping[str, int]) -> dict[str, str]:
    """The counts of :func:`row_totals` for people: with their share of the captions that were asked about."""
    cells = {name: f"{totals[name]:,}" for name in ("asked", "kept", "trained_on") if name in totals}
    if asked := totals.get("asked"):
        for name in cells.keys() - {"asked"}:
            cells[name] += f" ({100 * totals[name] / asked:.1f} %)"
    if "rewrites" in totals:
        cells["kept"] += f", {totals['rewrites']:,} rewrites"
    return {name.replace("_", " "): cell for name, cell in cells.items()}


def trained_on(totals: Mapping[str, int]) -> str | None:
    """The part of a verdict's sentence that says what was trained on; None where none is stated."""
    if "trained_on" not in totals:
        return None
    of = f" of {totals['asked']:,}" if "asked" in totals else ""
    return f"trained on {totals['trained_on']:,}{of} captions"


def fewer_than_a_batch(totals: Mapping[str, int], batch_size: int) -> str | None:
    """What to know and do where training had less than one batch; None where it had enough."""
    if totals.get("trained_on", batch_size) >= batch_size:
        return None
    return (
        f"{trained_on(totals)}, fewer than one batch (finetune.batch_size is {batch_size:,}), so its figures say "
        "little; add captions, loosen what rejected them (the table of stages and the report say what), or "
        "lower finetune.batch_size"
    )


def few_for_alpha(pairs: int, images: int, grid: Sequence[float]) -> str | None:
    """What to know and do if so many pairs of so many held-out images say little of which α of the grid is best.

    None if they say enough, and if the grid has one α. Without pairs the rule in ``alpha_sweep.json`` says that there
    were none.
    """
    if not pairs or len(set(grid)) <= 1 or (half := expected_half(min(images, pairs), pairs)) <= GAIN:
        return None
    return (
        f"α is chosen on {pairs:,} pairs of held-out training images, which tell AO@10 to ±{half:.1f} points, so its "
        "choice is mostly chance; raise finetune.validation, or add captions"
    )
