"""``summary.json``: the figures of both models, their differences and the verdict, for machines to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paraclip_core.evaluation.comparison import Comparison

__all__ = ["summary"]


def summary(comparison: Comparison, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Percentages by model, benchmark and metric; deltas and intervals in points.

    Args:
        comparison: base against tuned.
        fingerprints: names of the artifacts that took part, or references of the models.
    """
    models: dict[str, dict[str, dict[str, float]]] = {"base": {}, "tuned": {}}
    deltas: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for row in comparison.rows:
        models["base"].setdefault(row.benchmark, {})[row.metric] = row.base
        models["tuned"].setdefault(row.benchmark, {})[row.metric] = row.tuned
        deltas.setdefault(row.benchmark, {})[row.metric] = row.delta
        intervals.setdefault(row.benchmark, {})[row.metric] = [row.low, row.high]
    return {
        "models": models,
        "deltas": deltas,
        "intervals": intervals,
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "notes": list(comparison.notes),
        "fingerprints": dict(fingerprints),
    }
