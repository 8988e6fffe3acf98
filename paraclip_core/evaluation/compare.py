"""Compares two models: every figure with its difference and interval, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paraclip_core.evaluation.intervals import CONFIDENCE, RESAMPLES
from paraclip_core.evaluation.rows import Row
from paraclip_core.evaluation.verdict import AGAINST_BASE, Gate
from paraclip_core.evaluation.verdict.evidence import Evidence
from paraclip_core.evaluation.verdict.finding import Finding, Verdict, for_programs


@dataclass(frozen=True)
class Comparison:
    """All rows and the conclusions from them."""

    rows: tuple[Row, ...]
    verdict: Verdict
    findings: tuple[Finding, ...]
    over_control: tuple[Row, ...] = ()
    """The same figures with the caption-only control as `base`; empty if it shows nothing."""
    control: tuple[Row, ...] = ()
    """The same figures with the control as `tuned`."""
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES

    @property
    def untrained(self) -> bool:
        """Whether the base is near chance, so that no figure means anything."""
        return any(finding.code == "base_near_chance" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values, without those of a control if there is none."""
        rows = {name: [asdict(row) for row in getattr(self, name)] for name in ("rows", "over_control", "control")}
        figures = {name: value for name, value in rows.items() if value or name == "rows"}
        level = {"confidence": self.confidence, "resamples": self.resamples, "untrained": self.untrained}
        return {**figures, **for_programs(self.verdict, self.findings), **level}

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
            **for_programs(self.verdict, self.findings),
            "fingerprints": dict(fingerprints),
        }


def compare(evidence: Evidence, gate: Gate = AGAINST_BASE) -> Comparison:
    """The comparison that this evidence allows, with its verdict by `gate`."""
    verdict, findings = gate.judge(evidence)
    return Comparison(evidence.rows, verdict, findings, evidence.shown_over_control, evidence.control)


def rows_from_json(plain: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a ``comparison.json``."""
    return [Row(**row) for row in plain]
