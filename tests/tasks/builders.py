"""Artifacts as stages leave them, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.features import write_shard
from paraclip.storage.parquet import write_table
from paraclip_core.tables import CAPTIONS, FEATURE_INDEX, text_hash


def committed(
    store: ArtifactStore,
    stage: str,
    name: str,
    inputs: Mapping[str, str] | None = None,
    write: Callable[[Path], object] = lambda out: None,
    metrics: Mapping[str, Any] | None = None,
) -> Artifact:
    """The artifact of this fingerprint, whose files are written to a folder."""
    with store.writing(stage, name) as work:
        write(work.out)
        return store.commit(Draft(stage, name, 1, dict(inputs or {}), {}), dict(metrics or {}), 0.0)


def captions_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Ingested captions from their `caption`, `image_id` and what else is said of them."""
    usual = {"images": "images.tar", "split": "train", "license": "x", "source": "x"}
    filled = [
        usual
        | {"caption_id": text_hash(row["image_id"], row["caption"]), "image_path": row["image_id"]}
        | {"caption_raw": row["caption"], "source_row": number, **row}
        for number, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(filled, CAPTIONS)


def write_captions(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_table(out / "captions" / "part-00000.parquet", captions_of(rows))


def write_features(out: Path, ids: Sequence[str], features: np.ndarray) -> None:
    """One shard of these images' features, which are made unit vectors, and its index."""
    write_shard(out, 0, features / np.linalg.norm(features, axis=1, keepdims=True))
    index = [{"image_id": image, "shard": 0, "row": n, "pixels": text_hash(image)} for n, image in enumerate(ids)]
    write_table(out / "index.parquet", pa.Table.from_pylist(index, FEATURE_INDEX))
