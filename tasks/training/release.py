"""The end of both training stages: prove that the image tower is the same, and write the release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paraclip_core.clip.models import ClipModel, image_tower_hash, save_release
from paraclip_core.errors import ModelError
from paraclip_core.training.card import model_card
from storage.atomic import storage_error
from storage.parquet import iter_batches

__all__ = ["release"]


def release(
    folder: Path,
    clip: ClipModel,
    before: str,
    *,
    title: str,
    summary: str,
    base: str,
    rows: Path,
    options: Mapping[str, Any],
    figures: Sequence[Mapping[str, float]] = (),
) -> str:
    """Write the release folder with its model card.

    Args:
        folder: the release.
        clip: the trained model.
        before: hash of its image tower before training.
        title: heading of the card.
        summary: what was done.
        base: what it started from.
        rows: table of the rows it was trained on, with their licences.
        options: hyper-parameters.
        figures: validation figures for the card.

    Returns:
        The hash of the image tower after training, equal to `before`.

    Raises:
        ModelError: training changed the image tower.
        ArtifactError: the folder cannot be written.
    """
    after = image_tower_hash(clip)
    if after != before:
        raise ModelError(
            f"training changed the image tower ({before} before, {after} after), so image indexes of the base would be "
            "invalid; nothing is released. Please report this with the model's name"
        )
    card = model_card(
        title=title,
        summary=summary,
        base=base,
        image_tower_hash=after,
        licences=_licences(rows),
        options=options,
        figures=figures,
    )
    try:
        save_release(clip, folder, card)
    except OSError as error:
        raise storage_error(error, folder) from error
    return after


def _licences(rows: Path) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for batch in iter_batches(rows, ["licence"]):
        for entry in batch["licence"].value_counts().to_pylist():
            counted[entry["values"]] += entry["counts"]
    return dict(counted)
