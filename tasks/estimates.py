"""How long a stage takes and how much it writes: from earlier runs under this root, else from stated defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.artifacts import Artifact
from tasks.amounts import Amount, units_of

__all__ = ["Cost", "estimate"]


@dataclass(frozen=True)
class Rate:
    """A stage's cost: a fixed part and one per unit of work."""

    start: float
    """Seconds before the first unit: loading libraries and models."""
    seconds: float
    """Seconds per unit."""
    bytes: float
    """Bytes of the artifact per unit."""


DEFAULTS = {
    "scenes": Rate(0.5, 0.002, 15_500),
    "ingest": Rate(0.1, 0.00002, 50),
    "paraphrase_1": Rate(10, 0.07, 150),
    "paraphrase_2": Rate(10, 0.07, 190),
    "features": Rate(3, 0.016, 540),
    "bootstrap": Rate(5, 0.0012, 0.5),
    "finetune": Rate(8, 0.0037, 0.5),
    "evaluate": Rate(4, 0.0023, 75),
    "report": Rate(0.8, 0.0, 0.0),
}
"""Measured in a run of the demo on two quiet CPU cores. Units are those of :func:`tasks.amounts.units_of`."""

FIXED_BYTES = {"bootstrap": 78_500_000, "finetune": 78_500_000, "report": 730_000}


MOST_GROWTH = 30
"""A run that did less than this part of the work was mostly start, and says little about the rest."""


@dataclass(frozen=True)
class Cost:
    """An estimate and where it comes from."""

    seconds: float | None
    bytes: int | None
    basis: str


def estimate(stage: str, amount: Amount, earlier: Sequence[Artifact]) -> Cost:
    """Cost of a stage for this amount of work; `earlier` are its finished artifacts, oldest first."""
    rate = DEFAULTS.get(stage, Rate(5, 0.0, 0.0))
    if amount.units is None:
        return Cost(None, None, "unknown before the stages ahead of it are finished")
    scaled = _scaled(rate, FIXED_BYTES.get(stage, 0), amount, amount.units, earlier[-1]) if earlier else None
    if scaled is not None:
        return scaled
    seconds, size = rate.start + rate.seconds * amount.units, FIXED_BYTES.get(stage, 0) + rate.bytes * amount.units
    return Cost(round(seconds, 1), int(size), "defaults for two CPU cores")


def _scaled(rate: Rate, fixed_bytes: int, amount: Amount, units: float, earlier: Artifact) -> Cost | None:
    manifest = earlier.manifest
    basis = f"{manifest.stage}/{manifest.fingerprint[:12]}"
    before = units_of(manifest.stage, manifest.metrics)
    if not before:
        # Nothing says how much it had to do, so the same again is the best guess.
        return Cost(manifest.wall_seconds, manifest.size(), basis)
    if units > MOST_GROWTH * before:
        return None
    # The start costs the same for any amount, so only what is above it grows.
    start, fixed = min(rate.start, manifest.wall_seconds), min(fixed_bytes, manifest.size())
    share = units / before
    seconds = start + (manifest.wall_seconds - start) * share
    # A paraphrase stage asks for what is new and writes everything.
    rows = manifest.metrics.get("captions") if manifest.stage.startswith("paraphrase") else None
    written = amount.rows / rows if rows and amount.rows is not None else share
    return Cost(round(seconds, 1), int(fixed + (manifest.size() - fixed) * written), basis)
