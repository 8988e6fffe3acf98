"""What became of the rows of a source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

__all__ = ["MANY_LICENCES", "Counts", "Outcome"]

MANY_LICENCES = 1000
"""Different licences that are counted by name; a column that was taken for licences by mistake may hold millions."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch of rows."""

    accepted: pa.RecordBatch
    """Schema `tables.CAPTIONS`."""
    rejects: pa.RecordBatch
    """Schema `tables.REJECTS`."""


@dataclass
class Counts:
    """Rows read and what became of them."""

    read: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def note(self, outcome: Outcome) -> None:
        """Count a batch."""
        self.read += outcome.accepted.num_rows + outcome.rejects.num_rows
        self.accepted += outcome.accepted.num_rows
        self.rejected.update(outcome.rejects.column("reason").to_pylist())
        self.splits.update(outcome.accepted.column("split").to_pylist())
        for licence, count in Counter(outcome.accepted.column("licence").to_pylist()).items():
            room = licence in self.licences or len(self.licences) < MANY_LICENCES
            self.licences[licence if room else "(others)"] += count

    def add(self, other: Counts) -> None:
        """Count another file."""
        self.read += other.read
        self.accepted += other.accepted
        self.rejected.update(other.rejected)
        self.splits.update(other.splits)
        self.licences.update(other.licences)

    def to_json(self) -> dict[str, Any]:
        """As plain values with sorted names."""
        tallies = {name: dict(sorted(getattr(self, name).items())) for name in ("rejected", "splits", "licences")}
        return {"read": self.read, "accepted": self.accepted, **tallies}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Counts:
        """The counts that :meth:`to_json` gave."""
        tallies = {name: Counter(raw[name]) for name in ("rejected", "splits", "licences")}
        return cls(read=raw["read"], accepted=raw["accepted"], **tallies)
