"""Whether an index stays valid: both models' image encoders, preprocessing and features, compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.index import IndexCheck, check_encoders, check_features, check_images, read_index
from paraclip_core.clip.load import load_clip
from paraclip_core.errors import InputError


def verify_index(
    base: str,
    tuned: str,
    images: Path | None = None,
    features: Path | None = None,
    sample: int = 16,
    ids: Path | None = None,
) -> list[IndexCheck]:
    """Compare two models' image encoders, preprocessing, and features of `sample` evenly spaced images.

    `features` is an index of these images, see :func:`paraclip_core.clip.index.read_index`; without `ids` its rows are
    in the order of the images' names.
    """
    first, second = load_clip(base), load_clip(tuned)
    checks = check_encoders(first, second)
    if features is not None and images is None:
        raise InputError(f"{features} cannot be checked without its images; give --images as well")
    if images is not None:
        with ImageArchive(images) as archive:
            names: Sequence[str] = sorted(archive.names())
            if not names:
                raise InputError(f"{images} has no images")
            index = None if features is None else read_index(features, ids)
            if index is not None and index.named:
                names = index.ids
            elif index is not None and len(index) != len(names):
                raise InputError(
                    f"{index.source} holds {index.features.shape}; expected one row for each of the {len(names)} "
                    "images, or the rows' names with --ids"
                )
            rows = np.unique(np.linspace(0, len(names) - 1, min(sample, len(names))).round().astype(int))
            places: list[int] = rows.tolist()
            chosen = [names[place] for place in places]
            check, computed = check_images(first, second, [archive.open(name) for name in chosen], chosen)
        checks.append(check)
        if index is not None:
            checks.append(check_features(np.asarray(index.features[rows]), computed, chosen))
    return checks
