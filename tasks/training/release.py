"""The end of both training stages: the image tower is proven the same, and the release is written with its card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip.storage.artifacts import Artifact
from paraclip.storage.duckdb_file import frequent_values
from paraclip.storage.files import storage_error
from paraclip.storage.parquet import PartWriter, iter_batches
from paraclip_core.clip.export import save_release
from paraclip_core.clip.model import ClipModel, image_tower_hash
from paraclip_core.errors import ModelError
from paraclip_core.tables import CAPTIONS
from paraclip_core.training.card import ReleaseCard
from paraclip_core.training.data import CAPTION_ID, TrainingRows, id_array

LICENCE, SOURCE = "licence", "source"
TOLD = pa.schema([CAPTIONS.field(LICENCE), CAPTIONS.field(SOURCE)])


def release(folder: Path, clip: ClipModel, card: ReleaseCard) -> str:
    """Write the release folder with its model card.

    Args:
        folder: the release.
        clip: the trained model.
        card: what to say of it; its `image_tower_hash` is the one before training.

    Returns:
        The hash of the image tower after training, equal to the one before.
    """
    before, after = card.image_tower_hash, image_tower_hash(clip)
    if after != before:
        raise ModelError(
            f"training changed the image tower ({before} before, {after} after), so image indexes of the base would be "
            "invalid; nothing is released. Please report this with the model's name"
        )
    try:
        save_release(clip, folder, str(replace(card, base_model=clip.hub_name, revision=clip.revision)))
    except OSError as error:
        raise storage_error(error, folder) from error
    return after


@dataclass(frozen=True)
class Provenance:
    """Captions that were trained on, counted; each of the two adds up to all of them."""

    licences: dict[str, int]
    """Captions under each stated licence, the most frequent ones by name."""
    sources: dict[str, int]
    """Captions from each source file, likewise."""


def provenance_of(rows: TrainingRows, captions: Path, scratch: Path) -> Provenance:
    """Count licences and sources of training rows, within memory for a number a row.

    Args:
        rows: what is trained on; rows that do not know their caption ids count as `unknown`.
        captions: folder of the ingested captions, where each caption id is there once.
        scratch: folder for what is counted; it is made anew.
    """
    if rows.ids is None:
        return Provenance({"unknown": len(rows)}, {"unknown": len(rows)})
    shutil.rmtree(scratch, ignore_errors=True)
    writer, trained = PartWriter(scratch, TOLD), np.sort(_keys(rows.ids))
    for batch in iter_batches(captions, (CAPTION_ID, LICENCE, SOURCE)):
        keys = _keys(id_array(batch[CAPTION_ID]))
        places = np.minimum(np.searchsorted(trained, keys), max(len(trained) - 1, 0))
        mask = trained[places] == keys if len(trained) else np.zeros(len(keys), bool)
        writer.write(batch.filter(pa.array(mask)).select(TOLD.names).cast(TOLD))
    writer.close()
    return Provenance(frequent_values(scratch, LICENCE), frequent_values(scratch, SOURCE))


def paraphraser_of(paraphrases: Artifact) -> str | None:
    """Engine and model that wrote an artifact's paraphrases; None where its manifest does not say."""
    told = paraphrases.manifest.metrics
    parts = [f"{name} `{told[name]}`" for name in ("engine", "model") if told.get(name)]
    return ", ".join(parts) or None


def _keys(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Half of each id, which is a hash: enough to tell the captions of one table apart."""
    return np.ascontiguousarray(ids[:, :8]).view("<u8")[:, 0]
