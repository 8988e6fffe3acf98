"""An audit of an image index: rewordings from an engine or a file, figures, and a page with the worst queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.search import Searcher
from paraclip_core.config import Settings
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.audit import Audit, audit_index
from paraclip_core.report.audit_page import WORST, render_audit
from paraclip_core.report.page import thumbnail
from storage.files import write_atomic
from tasks.context import Run
from tasks.image_index import SearchTarget, load_models
from tasks.trial import try_captions

__all__ = ["audit", "expected_gain", "reword", "write_page"]

Pairs = Sequence[tuple[str, str]]

GAP_CLOSED = (0.045, 0.10)
"""Share of the distance to 100 that fine-tuning closed in AO@10 on photographs: with captions alone, and with
rewordings by people (docs/experiments.md)."""


def reword(settings: Settings, queries: Sequence[str], say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Each query with its paraphrases by the engine of the settings; answers go to the generation cache.

    Raises:
        EngineError: the engine cannot be asked.
        BenchmarkError: the gates accept no answer.
    """
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


def audit(target: SearchTarget, pairs: Pairs, device: str = "cpu", seed: int = 0) -> Audit:
    """Measure the models of a target; where base and tuned are one model, that one alone.

    Raises:
        ModelError: as :func:`tasks.image_index.load_models`.
        InputError: the index holds features that are not finite.
        BenchmarkError: there are no pairs.
    """
    searcher = Searcher(target.index.features, target.index.ids)
    models = {name: partial(encode_texts, clip) for name, clip in load_models(target, searcher, device).items()}
    if target.base == target.tuned:
        del models["tuned"]
    return audit_index(searcher, models, pairs, seed)


def expected_gain(result: Audit) -> str:
    """What a repair would bring, in words; empty where a repaired model was measured."""
    if result.gain:
        return ""
    before = result.figures["base"]["ao"].mean
    low, high = (before + share * (100 - before) for share in GAP_CLOSED)
    return (
        f"On photographs, fine-tuning on captions and people's rewordings closed about {GAP_CLOSED[1]:.0%} of the "
        f"distance to 100, and on captions alone about {GAP_CLOSED[0]:.0%}. At that rate AO@{result.depth} would go "
        f"from {before:.1f} to between {low:.1f} and {high:.1f} here. It is an extrapolation from one data set; "
        "`paraclip run` measures yours, with its captions-only control."
    )


def write_page(
    path: Path, result: Audit, target: SearchTarget, names: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write the audit's page, with pictures where the images are at hand.

    Raises:
        InputError: the images cannot be read.
    """
    page = render_audit(result, names, _thumbnails(result, target.images), expected_gain(result), facts)
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
