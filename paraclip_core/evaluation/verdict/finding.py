"""Findings: what a verdict rests on, as data, and how each audience reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from paraclip_core.evaluation.rows import Row

Verdict = Literal["promote", "hold"]
Effect = Literal["promotes", "blocks", "warns", "explains", "notes"]
"""`promote` requires a finding that promotes and none that blocks. What warns or explains is part of the reason; notes
are about the evidence, not about the models."""


@dataclass(frozen=True)
class Figure:
    """A row as a ``summary.json`` has it."""

    benchmark: str
    metric: str
    delta: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """One thing that the evidence shows."""

    code: str
    """Its name for programs; texts may change, codes do not."""
    effect: Effect
    text: str
    """A sentence without its capital and its full stop."""
    figures: tuple[Row | Figure, ...] = ()
    """The rows that it is about."""

    def as_json(self) -> dict[str, Any]:
        figures = [{each.name: getattr(row, each.name) for each in fields(Figure)} for row in self.figures]
        return {"code": self.code, "effect": self.effect, "text": self.text, "figures": figures}


def decided(findings: Iterable[Finding]) -> Verdict:
    """The verdict: the fold of the findings' effects."""
    effects = {finding.effect for finding in findings}
    return "promote" if "promotes" in effects and "blocks" not in effects else "hold"


def from_json(plain: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Findings of a ``summary.json`` or a ``comparison.json``."""
    return [Finding(**{**finding, "figures": tuple(Figure(**row) for row in finding["figures"])}) for finding in plain]


def paragraphs(findings: Iterable[Finding]) -> list[str]:
    """The verdict's reason for a page, a sentence each; notes are left out."""
    return [finding.text for finding in findings if finding.effect != "notes"]


def line(findings: Iterable[Finding]) -> str:
    """The verdict's reason in one line, for a terminal, a log or a channel's history."""
    return "; ".join(paragraphs(findings))


def notes(findings: Iterable[Finding]) -> list[str]:
    """What a reader must know about the evidence: rules that were not applied, benchmarks that were left out."""
    return [finding.text for finding in findings if finding.effect == "notes"]


def for_programs(verdict: Verdict, findings: Sequence[Finding]) -> dict[str, Any]:
    """The fields of ``summary.json`` about the verdict: a program reads `findings`, `reason` is for people."""
    return {
        "verdict": verdict,
        "reason": line(findings),
        "notes": notes(findings),
        "findings": [finding.as_json() for finding in findings],
    }
