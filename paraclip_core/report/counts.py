"""How many captions were asked about, kept and trained on, for a run's table, page and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def row_totals(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Count a run's rows on their way into training, from the metrics in each stage's manifest.

    `asked`: captions that step 1 processed. `kept`: those of them with an accepted pair after step 2. `paraphrases`:
    rows of these captions, only if some have several. `trained_on`: captions in an epoch of fine-tuning. Counts missing
    from the manifests are left out.
    """
    first, second, tuned = (metrics.get(stage, {}) for stage in ("paraphrase_1", "paraphrase_2", "finetune"))
    totals = {"asked": first.get("captions"), "kept": second.get("accepted"), "trained_on": tuned.get("rows")}
    if second.get("kept", 0) > second.get("accepted", 0):
        totals["paraphrases"] = second["kept"]
    return {name: int(count) for name, count in totals.items() if count is not None}


def shares_of_asked(totals: Mapping[str, int]) -> dict[str, str]:
    """The counts of :func:`row_totals` as text, with their share of the captions asked about."""
    cells = {name: f"{totals[name]:,}" for name in ("asked", "kept", "trained_on") if name in totals}
    if asked := totals.get("asked"):
        for name in cells.keys() - {"asked"}:
            cells[name] += f" ({100 * totals[name] / asked:.1f} %)"
    if "paraphrases" in totals:
        cells["kept"] += f", {totals['paraphrases']:,} paraphrases"
    return {name.replace("_", " "): cell for name, cell in cells.items()}


def trained_on(totals: Mapping[str, int]) -> str | None:
    """The part of a verdict's sentence that says what was trained on; None if unknown."""
    if "trained_on" not in totals:
        return None
    of = f" of {totals['asked']:,}" if "asked" in totals else ""
    return f"trained on {totals['trained_on']:,}{of} captions"


def fewer_than_a_batch(totals: Mapping[str, int], batch_size: int) -> str | None:
    """A notice with advice if training had less than one batch; None otherwise."""
    if totals.get("trained_on", batch_size) >= batch_size:
        return None
    return (
        f"{trained_on(totals)}, fewer than one batch (finetune.batch_size is {batch_size:,}), so its figures say "
        "little; add captions, loosen what rejected them (the table of stages and the report say what), or "
        "lower finetune.batch_size"
    )
