"""A comparison straight from measured values."""

from __future__ import annotations

from paraclip_core.evaluation.compare import Comparison, compare
from paraclip_core.evaluation.options import GateRule
from paraclip_core.evaluation.rows import Outcome, compared_rows
from paraclip_core.evaluation.verdict.evidence import Evidence, different_images, searched_images


def judged(*outcomes: Outcome, gate: GateRule | None = None) -> Comparison:
    """The comparison of these outcomes by the usual gate, or another."""
    images, different = searched_images(outcomes), different_images(outcomes)
    return compare(Evidence(compared_rows(outcomes), gate or GateRule(), images=images, different_images=different))
