"""Stores outcomes as arrays while a stage runs, and as a table (:data:`paraclip_core.tables.SAMPLES`) to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.tables import SAMPLES


def to_arrays(measured: Measured) -> dict[str, NDArray[Any]]:
    """Values and ranked lists as named arrays (for an .npz file); notes are not included."""
    arrays: dict[str, NDArray[Any]] = {f"ranked:{name}": rows for name, rows in measured.ranked.items()}
    for name, sample in measured.samples.items():
        parts = {"values": sample.values, "clusters": sample.clusters, "gold": sample.gold}
        arrays |= {f"{part}:{name}": array for part, array in parts.items() if array is not None}
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, Any]) -> Measured:
    """The inverse of :func:`to_arrays`; the metrics keep their order."""
    by_part: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in ("values", "clusters", "gold", "ranked")}
    for key, array in arrays.items():
        part, _, name = key.partition(":")
        by_part[part][name] = array
    values, clusters, gold, ranked = by_part.values()
    return Measured({name: Sample(values[name], clusters[name], gold.get(name)) for name in values}, notes, ranked)


def to_table(base: Measured, tuned: Measured) -> pa.Table:
    """The values behind both models' figures, one row for each metric and query (:data:`SAMPLES`)."""
    columns: dict[str, list[Any]] = {name: [] for name in SAMPLES.names}
    for metric, sample in base.samples.items():
        count = len(sample.values)
        gold = pa.nulls(count, pa.float64()) if sample.gold is None else pa.array(sample.gold)
        parts = (pa.repeat(metric, count), pa.array(sample.clusters), gold, pa.array(sample.values))
        for column, part in zip(columns.values(), (*parts, pa.array(tuned.samples[metric].values)), strict=True):
            column.append(part)
    # Strings are dictionary-encoded here, once for all metrics.
    chunks = [pa.chunked_array(parts, pa.string() if name == "metric" else None) for name, parts in columns.items()]
    return pa.Table.from_arrays(chunks, SAMPLES.names).cast(SAMPLES)


def from_table(table: pa.Table) -> tuple[Measured, Measured]:
    """The base's and the tuned model's samples from :func:`to_table`, without notes and ranked lists."""
    base: dict[str, Sample] = {}
    tuned: dict[str, Sample] = {}
    plain = table.set_column(0, "metric", table["metric"].cast(pa.string()))
    for metric in plain["metric"].unique().to_pylist():
        rows = plain.filter(pc.field("metric") == metric)
        gold = None if rows["gold"].null_count else rows["gold"].to_numpy()
        for samples, column in ((base, "base"), (tuned, "tuned")):
            samples[metric] = Sample(rows[column].to_numpy(), rows["cluster"].to_numpy(), gold)
    return Measured(base, {}), Measured(tuned, {})
