"""The query pairs on which the tuned model's two rankings agree least."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.parquet import iter_batches

__all__ = ["worst_pairs"]

COLUMNS = ("caption", "rewording", "base_ao", "tuned_ao", "tuned_caption_top", "tuned_rewording_top")


def worst_pairs(evaluation: Path, count: int = 20) -> list[dict[str, Any]]:
    """Rows of a table, the lowest average overlap (percent) first, with both ranked lists of image ids.

    Args:
        evaluation: folder of the evaluate artifact.
        count: how many pairs; memory holds no more than these.

    Raises:
        ArtifactError: a file cannot be read.
    """
    files = sorted((evaluation / "per_query").glob("*.parquet"))
    worst = heapq.nsmallest(count, _pairs(files), key=lambda found: found[:3])
    return [
        {
            "benchmark": name,
            "caption": row["caption"],
            "rewording": row["rewording"],
            "base ao@10": round(100 * row["base_ao"], 1),
            "tuned ao@10": round(100 * row["tuned_ao"], 1),
            "images for the caption": ", ".join(row["tuned_caption_top"]),
            "images for the rewording": ", ".join(row["tuned_rewording_top"]),
        }
        for _, name, _, row in worst
    ]


def _pairs(files: list[Path]) -> Iterator[tuple[float, str, int, dict[str, Any]]]:
    for path in files:
        number = 0
        for batch in iter_batches(path, COLUMNS, batch_rows=4096):
            for row in batch.to_pylist():
                yield row["tuned_ao"], path.stem, number, row
                number += 1
