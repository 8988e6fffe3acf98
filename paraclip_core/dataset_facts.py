"""What a data card tells, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paraclip_core.paraphrase.prompts import PromptTemplate

__all__ = ["DatasetFacts", "OptOutFacts", "StepFacts", "WordStatistics", "word_statistics"]


@dataclass(frozen=True)
class StepFacts:
    """A paraphrase step: what its manifest says, and what the model was shown."""

    options: Mapping[str, Any]
    metrics: Mapping[str, Any]
    prompt: PromptTemplate | None
    """None where no model was asked."""


@dataclass(frozen=True)
class WordStatistics:
    """Words of the texts of a column."""

    least: int
    median: int
    mean: float
    p95: int
    most: int


@dataclass(frozen=True)
class OptOutFacts:
    """What an opt-out list did."""

    entries: int
    rows: int
    """Rows that were left out."""


@dataclass(frozen=True)
class DatasetFacts:
    """All that the card tells."""

    name: str
    rows: Mapping[str, int]
    """Rows by split."""
    columns: Sequence[str]
    ingest_options: Mapping[str, Any]
    ingest_metrics: Mapping[str, Any]
    steps: tuple[StepFacts, StepFacts]
    words: Mapping[str, WordStatistics]
    samples: Sequence[Mapping[str, Any]]
    licences: Mapping[str, int]
    """Rows by licence as stated."""
    opt_outs: OptOutFacts | None
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    languages: Sequence[str] = ("en",)
    contact: str = ""
    """Where to ask for removal, in the publisher's words."""

    @property
    def by_model(self) -> bool:
        """Whether a language model wrote the paraphrases; otherwise they were given in a file."""
        return self.steps[0].prompt is not None


def word_statistics(histogram: Mapping[int, int]) -> WordStatistics:
    """From texts by their number of words; median and 95th percentile are nearest ranks, so they are whole words."""
    counts = Counter(histogram)
    total = counts.total()
    if not total:
        return WordStatistics(0, 0, 0.0, 0, 0)
    lengths = sorted(counts)
    mean = sum(words * count for words, count in counts.items()) / total
    return WordStatistics(lengths[0], _rank(counts, 50), mean, _rank(counts, 95), lengths[-1])


def _rank(counts: Counter[int], percent: int) -> int:
    wanted, seen = -(-counts.total() * percent // 100), 0
    for words in sorted(counts):
        seen += counts[words]
        if seen >= wanted:
            return words
    raise AssertionError("a percentile lies among the values")
