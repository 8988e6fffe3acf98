"""Audit of a search: how much its results depend on the wording of queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.storage.files import write_atomic
from paraclip.tasks.image_index import SearchTarget, captions_of, load_models, most_frequent
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.search import Searcher
from paraclip_core.errors import InputError
from paraclip_core.evaluation.audit import Audit, audit_index
from paraclip_core.report.audit import render_audit, shown_images
from paraclip_core.report.html import thumbnail

QUERIES = 200
"""Number of queries that are taken from an index itself."""
LOOKED_AT = 10_000
"""Number of images that decide which names fit an index."""


def audit(target: SearchTarget, entries: Sequence[Any] | None = None, device: str = "cpu") -> Audit:
    """Measure the models of a target and compare them on the queries; only one if base and tuned are the same model.

    `entries` are queries, which are reworded by rules, and pairs of a query and its paraphrased query; by default they
    come from the index.
    """
    searcher = Searcher(target.index.features, target.index.ids)
    models = {name: partial(encode_texts, clip) for name, clip in load_models(target, searcher, device).items()}
    if target.base == target.tuned:
        del models["tuned"]
    if entries is None:
        entries = queries_of_index(target, searcher, models["base"])
    return audit_index(searcher, models, entries)


def queries_of_index(target: SearchTarget, searcher: Searcher, encode: Callable[[Sequence[str]], Any]) -> list[Any]:
    """Default queries for an index: captions of its images, two of one image as a pair; a run's log, those asked most
    often first; or names of things."""
    if target.captions is None:
        return _fitting_names(searcher, encode)
    if queries := most_frequent(target.captions, QUERIES):
        return list(queries)
    captions = captions_of(target.captions, target.index.ids[:: max(1, len(target.index) // QUERIES)])
    pairs = [(*texts[:2], "another caption") for texts in captions.values() if len({*texts[:2]}) > 1]
    return [*pairs, *(texts[0] for texts in captions.values())]


def _fitting_names(searcher: Searcher, encode: Callable[[Sequence[str]], Any]) -> list[str]:
    """ImageNet's class names, those nearest to the most images first."""
    names = np.array(IMAGENET_CLASSNAMES)
    rows = np.unique(np.linspace(0, len(searcher.ids) - 1, LOOKED_AT, dtype=np.int64))
    nearest = (searcher.rows(rows) @ encode(IMAGENET_CLASSNAMES).T).argmax(1)
    votes = np.bincount(nearest, minlength=len(names))
    return [str(name) for name in names[np.argsort(-votes, kind="stable")][: min(QUERIES, int((votes > 0).sum()))]]


def write_page(
    path: Path, result: Audit, target: SearchTarget, names: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write the audit's page, with pictures if the images are available."""
    page = render_audit(result, names, _thumbnails(result, target.images), facts)
    write_atomic(path, lambda file: file.write(page.encode("utf-8", "replace")))


def _thumbnails(result: Audit, images: Path | None) -> dict[str, bytes]:
    if images is None:
        return {}
    thumbnails = {}
    with ImageArchive(images) as archive:
        for image in sorted(shown_images(result)):
            # A gap on the page is left for images that no longer exist.
            with suppress(InputError):
                thumbnails[image] = thumbnail(archive.open(image))
    return thumbnails
