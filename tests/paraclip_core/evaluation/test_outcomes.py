"""Outcomes there and back, as arrays and as tables."""

from __future__ import annotations

import numpy as np

from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.outcomes import from_arrays, from_table, to_arrays, to_table
from paraclip_core.tables import SAMPLES


def test_arrays_there_and_back() -> None:
    gold = Sample(np.arange(4.0), np.arange(4), np.arange(4.0)[::-1])
    before = Measured(
        {"spearman": gold, "ao@10": Sample(np.ones(2), np.arange(2))}, {"a": 1}, {"x": np.eye(2, dtype=int)}
    )
    after = from_arrays(to_arrays(before), {"a": 1})
    assert after.metrics == before.metrics == {"spearman": -100.0, "ao@10": 100.0}
    assert list(after.samples) == list(before.samples)
    np.testing.assert_array_equal(after.ranked["x"], before.ranked["x"])


def test_tables_there_and_back() -> None:
    gold = Sample(np.array([0.1, 0.2, 0.4]), np.arange(3), np.array([3.0, 1.0, 2.0]))
    base = Measured({"spearman": gold, "ao@10": Sample(np.ones(2), np.array([7, 7]))}, {"a": 1})
    other = Sample(np.array([0.3, 0.1, 0.2]), np.arange(3), gold.gold)
    tuned = Measured({"spearman": other, "ao@10": Sample(np.zeros(2), np.array([7, 7]))}, {})
    table = to_table(base, tuned)
    assert table.schema.equals(SAMPLES) and table.num_rows == 5
    for before, after in zip((base, tuned), from_table(table), strict=True):
        assert after.metrics == before.metrics and list(after.samples) == list(before.samples)
        for metric, sample in before.samples.items():
            np.testing.assert_array_equal(after.samples[metric].clusters, sample.clusters)
            assert (after.samples[metric].gold is None) == (sample.gold is None)
