"""What benchmarks read and measure, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip_core.evaluation.metrics import spearman

STRATUM = 1 << 40
"""Clusters from one multiple of it to the next belong to one data set of a bundle."""


@dataclass(frozen=True)
class Sample:
    """The values behind one figure: their mean, or, with `gold`, their rank correlation with it.

    Of several data sets (see :data:`STRATUM`) it is the unweighted mean of their correlations.
    """

    values: NDArray[np.float64]
    """One value for each query, shape [n]."""
    clusters: NDArray[np.int64]
    """Which queries belong together (one image's captions, say) and are not independent, shape [n]."""
    gold: NDArray[np.float64] | None = None
    """Human scores of the same items, shape [n], where the figure is Spearman's correlation."""

    def statistic(self) -> float:
        """The figure, as a fraction. A model that gives every pair the same score has no correlation, so 0."""
        if self.gold is None:
            return float(self.values.mean())
        values = [spearman(part.values, part.gold) for part in self.strata() if part.gold is not None]
        return float(np.mean([0.0 if np.isnan(value) else value for value in values]))

    def strata(self) -> list[Sample]:
        """The data sets of a bundle, each a sample; most samples are of one."""
        stratum = self.clusters // STRATUM
        parts = np.unique(stratum).tolist()
        if self.gold is None or len(parts) == 1:
            return [self]
        rows = [stratum == part for part in parts]
        return [Sample(self.values[row], self.clusters[row], self.gold[row]) for row in rows]


@dataclass(frozen=True)
class Measured:
    """One benchmark's outcome for one model."""

    samples: Mapping[str, Sample]
    """By metric."""
    notes: Mapping[str, Any]
    """The protocol: split, number of images and captions, what was left out."""
    ranked: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Ranked lists worth showing, by name: rows of the image pool, shape [n, k]."""

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of fractions, in percent."""
        return {name: 100.0 * sample.statistic() for name, sample in self.samples.items()}


@dataclass(frozen=True)
class Captions:
    """Captions of images: `image_ids[i]` is the image of `captions[i]`."""

    image_ids: Sequence[str]
    captions: Sequence[str]
    split: str
    """Split that they are, or a word on where they come from."""
