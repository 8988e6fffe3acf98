"""Counts of accepted and rejected rows, by reason, split and license."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

MANY_LICENSES = 1000
"""Maximum number of licenses counted by name; a column mistaken for licenses may hold millions."""
TALLIES = ("rejected", "splits", "licenses")
OPTIONS = {"too_few_words": "data.min_words", "too_many_words": "data.max_words"}
"""The option behind a reason."""


@dataclass(frozen=True)
class Outcome:
    """The accepted and the rejected rows of a batch."""

    accepted: pa.RecordBatch
    """Schema `tables.CAPTIONS`."""
    rejects: pa.RecordBatch
    """Schema `tables.REJECTS`."""


@dataclass
class Counts:
    """Counts of rows read, accepted and rejected."""

    read: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)

    def note(self, outcome: Outcome) -> None:
        self.read += outcome.accepted.num_rows + outcome.rejects.num_rows
        self.accepted += outcome.accepted.num_rows
        self.rejected.update(outcome.rejects.column("reason").to_pylist())
        self.splits.update(outcome.accepted.column("split").to_pylist())
        for license, count in Counter(outcome.accepted.column("license").to_pylist()).items():
            room = license in self.licenses or len(self.licenses) < MANY_LICENSES
            self.licenses[license if room else "(others)"] += count

    def add(self, counts: Counts) -> None:
        self.read += counts.read
        self.accepted += counts.accepted
        for name in TALLIES:
            getattr(self, name).update(getattr(counts, name))

    def to_json(self) -> dict[str, Any]:
        tallies = {name: dict(sorted(getattr(self, name).items())) for name in TALLIES}
        return {"read": self.read, "accepted": self.accepted, **tallies}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Counts:
        return cls(read=raw["read"], accepted=raw["accepted"], **{name: Counter(raw[name]) for name in TALLIES})


def listed_reasons(counts: Mapping[str, int]) -> str:
    """Rejected rows by reason, the most frequent first, each with the option that controls it."""
    ranked = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{reason} {n}" + (f" ({OPTIONS[reason]})" if reason in OPTIONS else "") for reason, n in ranked)


def bare_rows(split: str, without: int, rows: int) -> str:
    """A notice about a held-out split in which some rows have no image."""
    return f"{without} of {rows} captions of split {split} have no image, so no benchmark of these captions uses them"
