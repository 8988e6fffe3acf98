"""What the generation cache's answers were made of: the tokens that an engine was paid for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError
from storage.atomic import read_json, write_json
from storage.segments import SegmentFolder, digest_of

__all__ = ["note_imported", "note_joined", "paid_tokens"]

log = logging.getLogger(__name__)

IMPORTED = "imported.json"
"""Engine → model → segment's digest → prompt and completion tokens of the generations that came from other caches."""
ANY_SEGMENT = ""
"""Stands for the segments that earlier releases imported: they noted the tokens of all of them together."""
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
        # Before the segments: what is imported or joined meanwhile then counts as paid, and the cap comes sooner.
        imported = _imported(cache_folder).get(engine, {}).get(model, {})
        names = segments.names()
        try:
            found = [_paid(segments.folder / name, engine, model) for name in names]
        except FileNotFoundError as error:
            # Segments were joined meanwhile: what they held is counted in the one that took their place.
            if segments.names() == names:
                what = f"cannot read {error.filename or segments.folder}: {error.strerror or error}"
                raise ArtifactError(f"{what}; `paraclip cache verify` finds what is damaged") from error
            continue
        prompt, completion = _total(imported, {ANY_SEGMENT, *map(digest_of, names)})
        return (
            max(0, sum(count for count, _ in found) - prompt),
            max(0, sum(count for _, count in found) - completion),
        )


def note_imported(cache_folder: Path, digest: str, rows: pa.Table) -> None:
    """Note that the generations of a segment came from another cache. Call it while holding the cache's lock.

    Raises:
        ArtifactError: the note cannot be written.
    """
    if not set(COLUMNS).issubset(rows.column_names):
        # Nobody counts them as paid either.
        return
    known = _imported(cache_folder)
    sums = rows.group_by(["engine", "model"]).aggregate([("prompt_tokens", "sum"), ("completion_tokens", "sum")])
    for row in sums.to_pylist():
        counted = [row["prompt_tokens_sum"] or 0, row["completion_tokens_sum"] or 0]
        known.setdefault(row["engine"], {}).setdefault(row["model"], {})[digest] = counted
    write_json(cache_folder / IMPORTED, known)


def note_joined(cache_folder: Path, present: Iterable[str], old: Iterable[str], new: str) -> None:
    """Note that a segment will take the place of others, imported ones perhaps. Call it, before that, while holding the
    cache's lock.

    Args:
        cache_folder: the cache's folder.
        present: digests of all segments; what is noted of others is forgotten.
        old: digests of those that are joined.
        new: digest of the one that holds their rows.

    Raises:
        ArtifactError: the note cannot be written.
    """
    known, kept, joined = _imported(cache_folder), {ANY_SEGMENT, *present}, set(old)
    if not known:
        return
    for models in known.values():
        for model, noted in models.items():
            models[model] = {digest: counts for digest, counts in noted.items() if digest in kept}
            if joined.intersection(noted):
                models[model][new] = list(_total(noted, joined))
    write_json(cache_folder / IMPORTED, known)


def _imported(cache_folder: Path) -> dict[str, dict[str, dict[str, list[int]]]]:
    path = cache_folder / IMPORTED
    try:
        found = read_json(path) if path.exists() else {}
        try:
            return {
                engine: {model: _by_segment(noted) for model, noted in models.items()}
                for engine, models in found.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            what = f"{path} is not as `paraclip cache import` writes it ({error}); restore or delete it"
            raise ArtifactError(what) from error
    except ArtifactError as error:
        log.warning("what was imported counts as paid: %s", error)
        return {}


def _by_segment(noted: Any) -> dict[str, list[int]]:
    by_segment = noted if isinstance(noted, dict) else {ANY_SEGMENT: noted}
    return {digest: [int(prompt), int(completion)] for digest, (prompt, completion) in by_segment.items()}


def _total(noted: dict[str, list[int]], digests: Collection[str]) -> tuple[int, int]:
    counted = [counts for digest, counts in noted.items() if digest in digests]
    return sum(prompt for prompt, _ in counted), sum(completion for _, completion in counted)


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
