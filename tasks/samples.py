"""Samples of a paraphrase stage on their way to whoever looks: from the stage's process to the one that shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from paraclip_core.errors import ArtifactError
from paraclip_core.progress import Progress
from storage.artifacts import Artifact, ArtifactStore
from storage.files import write_json
from storage.parquet import iter_batches

__all__ = ["final_samples", "keeping_samples", "latest_samples", "samples_path"]

KEEP_SECONDS = 5.0
SHOWN = 20
Rows = list[dict[str, str]]
"""`input`, `answer` and `outcome`."""


def samples_path(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    """Where the latest samples of a stage lie while it, or a shard of it, works."""
    return store.cache / "samples" / f"{stage}-{fingerprint}.json"


def keeping_samples(progress: Progress, rows: Callable[[], Rows], path: Path) -> Progress:
    """A progress that also writes the latest samples to `path`, every few seconds."""
    last = 0.0

    def told(done: int, total: int | None, **facts: float | int | str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= KEEP_SECONDS and (latest := rows()):
            last = now
            # Nobody wants to lose the work because it cannot be looked at.
            with suppress(ArtifactError):
                write_json(path, latest)
        progress(done, total, **facts)

    return told


def latest_samples(path: Path) -> Rows:
    """What `keeping_samples` wrote last; nothing where it wrote nothing."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return []


def final_samples(artifact: Artifact, step: int) -> Rows:
    """A few rows and rejects of a finished stage; nothing where its files are not here.

    Raises:
        ArtifactError: they cannot be read.
    """
    text = "caption" if step == 1 else "paraphrase_1"
    kept = _head(artifact.path / "paraphrases", (text, f"paraphrase_{step}"))
    refused = _head(artifact.path / "rejects", ("input", "answer", "reason"))
    rows = [{"input": row[text], "answer": row[f"paraphrase_{step}"], "outcome": "kept"} for row in kept]
    return rows + [
        {"input": row["input"], "answer": row["answer"] or "", "outcome": row["reason"] or ""} for row in refused
    ]


def _head(folder: Path, columns: Sequence[str]) -> Rows:
    if not folder.is_dir():
        return []
    batch = next(iter_batches(folder, columns, batch_rows=SHOWN), None)
    return [] if batch is None else batch.to_pylist()
