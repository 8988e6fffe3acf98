"""The end of both training stages: prove that the image tower is the same, and write the release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paraclip_core.clip.export import save_release
from paraclip_core.clip.model import ClipModel, image_tower_hash
from paraclip_core.errors import ModelError
from paraclip_core.training.card import ReleaseCard
from storage.files import storage_error
from tasks.training.provenance import Provenance

__all__ = ["release"]


def release(
    folder: Path,
    clip: ClipModel,
    before: str,
    *,
    title: str,
    summary: str,
    base: str,
    weights: str | None = None,
    provenance: Provenance,
    paraphraser: str | None = None,
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
        weights: hash of the base's weights.
        provenance: licences and sources of the rows that it was trained on.
        paraphraser: who wrote the paraphrases among them.
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
    card = ReleaseCard(
        title=title,
        summary=summary,
        base=base,
        base_model=clip.hub_name,
        revision=clip.revision,
        weights=weights,
        image_tower_hash=after,
        licences=provenance.licences,
        sources=provenance.sources,
        paraphraser=paraphraser,
        options=options,
        figures=figures,
    )
    try:
        save_release(clip, folder, str(card))
    except OSError as error:
        raise storage_error(error, folder) from error
    return after
