"""What the generation cache's answers were made of: the tokens that an engine was paid for."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError
from storage.atomic import read_json, write_json
from storage.segments import SegmentFolder

__all__ = ["note_imported", "paid_tokens"]

log = logging.getLogger(__name__)

IMPORTED = "imported.json"
"""Engine → model → prompt and completion tokens of the generations that came from other caches."""
COLUMNS = ["engine", "model", "prompt_tokens", "completion_tokens"]


def paid_tokens(cache_folder: Path, engine: str, model: str) -> tuple[int, int]:
    """Prompt and completion tokens of all generations of one engine and model that were asked for here.

    What was imported from other caches was paid for elsewhere. A segment that cannot be read is passed over. It needs
    no lock.

    Args:
        cache_folder: the cache's folder.
        engine: name of the engine.
        model: its model id.

    Raises:
        ArtifactError: the folder cannot be read.
    """
    segments = SegmentFolder(cache_folder / "segments")
    while True:
        names = segments.names()
        try:
            found = [_paid(segments.folder / name, engine, model) for name in names]
        except FileNotFoundError as error:
            # Segments were joined meanwhile: what they held is counted in the one that took their place.
            if segments.names() == names:
                what = f"cannot read {error.filename or segments.folder}: {error.strerror or error}"
                raise ArtifactError(f"{what}; `paraclip cache verify` finds what is damaged") from error
            continue
        prompt, completion = _imported(cache_folder).get(engine, {}).get(model, (0, 0))
        return (
            max(0, sum(count for count, _ in found) - prompt),
            max(0, sum(count for _, count in found) - completion),
        )


def note_imported(cache_folder: Path, rows: pa.Table) -> None:
    """Note that generations came from another cache. Call it while holding the cache's lock.

    Raises:
        ArtifactError: the note cannot be written.
    """
    if not set(COLUMNS).issubset(rows.column_names):
        # Nobody counts them as paid either.
        return
    known = _imported(cache_folder)
    sums = rows.group_by(["engine", "model"]).aggregate([("prompt_tokens", "sum"), ("completion_tokens", "sum")])
    for row in sums.to_pylist():
        before = known.setdefault(row["engine"], {}).get(row["model"], (0, 0))
        counted = (row["prompt_tokens_sum"] or 0, row["completion_tokens_sum"] or 0)
        known[row["engine"]][row["model"]] = [old + new for old, new in zip(before, counted, strict=True)]
    write_json(cache_folder / IMPORTED, known)


def _imported(cache_folder: Path) -> dict[str, dict[str, list[int]]]:
    path = cache_folder / IMPORTED
    try:
        found = read_json(path) if path.exists() else {}
        if not isinstance(found, dict) or not all(isinstance(models, dict) for models in found.values()):
            raise ArtifactError(f"{path} is not as `paraclip cache import` writes it; restore or delete it")
        return found
    except ArtifactError as error:
        log.warning("what was imported counts as paid: %s", error)
        return {}


def _paid(path: Path, engine: str, model: str) -> tuple[int, int]:
    try:
        table = pq.read_table(path, columns=COLUMNS, filters=[("engine", "=", engine), ("model", "=", model)])
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        log.warning("%s does not count towards the spending: %s", path, error)
        return 0, 0
    return _sum(table, "prompt_tokens"), _sum(table, "completion_tokens")


def _sum(table: pa.Table, name: str) -> int:
    return pc.sum(table.column(name)).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
