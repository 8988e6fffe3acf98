"""An audit of an image index: rewordings from an engine or a file, figures, and a page with the worst queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.storage.files import write_atomic
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.image_index import SearchTarget, load_models
from paraclip.tasks.run.run import Run
from paraclip.tasks.trial import try_captions
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.search import Searcher
from paraclip_core.config import Settings
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.audit import Audit, audit_index
from paraclip_core.report.page import WORST, render_audit, thumbnail

QUERIES = 200
"""Queries that are taken from an index itself."""
SAMPLE = 10_000
"""Images that say which names fit an index."""


def reword(settings: Settings, queries: Sequence[str], say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Each query with its paraphrases by the engine of the settings; answers go to the generation cache."""
    trial = try_captions(Run(settings), list(queries), True, say)
    pairs = [
        (caption.caption, text)
        for caption in trial.captions
        for rewrite in caption.rewrites
        for text in (rewrite.paraphrase_1, rewrite.paraphrase_2)
        if text is not None
    ]
    if not pairs:
        raise BenchmarkError(
            f"{trial.engine} gave no rewording of {len(queries)} queries that the gates accept; "
            "see `paraclip paraphrase` for why, or give a file with the columns query and rewording"
        )
    return list(dict.fromkeys(pairs))


def audit(target: SearchTarget, entries: Sequence[Any] | None = None, device: str = "cpu") -> Audit:
    """Measure the models of a target; where base and tuned are one model, that one alone.

    `entries` are queries, which rules reword, and pairs of a query and its rewording; by default the index's own.
    """
    searcher = Searcher(target.index.features, target.index.ids)
    models = {name: partial(encode_texts, clip) for name, clip in load_models(target, searcher, device).items()}
    if target.base == target.tuned:
        del models["tuned"]
    if entries is None:
        entries = queries_of_index(target, searcher, models["base"])
    return audit_index(searcher, models, entries)


def queries_of_index(target: SearchTarget, searcher: Searcher, encode: Callable[[Sequence[str]], Any]) -> list[Any]:
    """Queries for an index that comes alone: captions of its images, two of one image as a pair, or names of things."""
    if target.captions is None:
        return _fitting_names(searcher, encode)
    ids = target.index.ids[:: max(1, len(target.index) // QUERIES)]
    wanted = pc.SetLookupOptions(value_set=pa.array(ids, pa.string()))
    captions: dict[str, list[str]] = {}
    for batch in iter_batches(target.captions.path / "captions", ["image_id", "caption"]):
        chosen = batch.filter(pc.call_function("is_in", [batch["image_id"]], wanted))
        for image, caption in zip(*(column.to_pylist() for column in chosen.columns), strict=True):
            captions.setdefault(image, []).append(caption)
    others = [(*texts[:2], "another caption") for texts in captions.values() if len({*texts[:2]}) > 1]
    return [*others, *(texts[0] for texts in captions.values())]


def _fitting_names(searcher: Searcher, encode: Callable[[Sequence[str]], Any]) -> list[str]:
    """ImageNet's names of things, those first that are the nearest of most images."""
    names = np.array(IMAGENET_CLASSNAMES)
    rows = np.unique(np.linspace(0, len(searcher.ids) - 1, SAMPLE, dtype=np.int64))
    nearest = (searcher.rows(rows) @ encode(IMAGENET_CLASSNAMES).T).argmax(1)
    votes = np.bincount(nearest, minlength=len(names))
    return [str(name) for name in names[np.argsort(-votes, kind="stable")][: min(QUERIES, int((votes > 0).sum()))]]


def write_page(
    path: Path, result: Audit, target: SearchTarget, names: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write the audit's page, with pictures where the images are at hand."""
    page = render_audit(result, names, _thumbnails(result, target.images), facts)
    write_atomic(path, lambda file: file.write(page.encode("utf-8", "replace")))


def _thumbnails(result: Audit, images: Path | None) -> dict[str, bytes]:
    if images is None:
        return {}
    shown = {
        image for pair in result.pairs[:WORST] for lists in pair.nearest.values() for ids in lists for image in ids
    }
    thumbnails = {}
    with ImageArchive(images) as archive:
        for image in sorted(shown):
            try:
                thumbnails[image] = thumbnail(archive.open(image))
            except InputError:
                # A gap on the page: the index may name images that are gone.
                continue
    return thumbnails
