"""How much work each stage of a run has, before it runs: rows, requests, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paraclip_core.captions.ids import text_keys
from paraclip_core.captions.seen import KeySet
from paraclip_core.config import Settings
from storage.artifacts import Artifact, ArtifactStore

__all__ = ["Amount", "amounts", "units_of"]

CAPTIONS_PER_SCENE = 3

TOKENS_PER_REQUEST = 340
"""Examples, the caption and four short answers."""


@dataclass(frozen=True)
class Amount:
    """The work of one stage."""

    rows: int | None = None
    """What it reads: images for scenes and features, captions elsewhere."""
    requests: int | None = None
    tokens: int | None = None
    units: float | None = None
    """What its time grows with, see :func:`units_of`."""


def units_of(stage: str, metrics: Mapping[str, Any]) -> float | None:
    """What a finished stage's time grew with: requests, samples seen in training, images or rows."""
    if stage in ("bootstrap", "finetune") and "steps" in metrics and "batch_size" in metrics:
        return float(metrics["steps"] * metrics["batch_size"])
    for name in UNITS.get(stage, ("rows",)):
        if isinstance(metrics.get(name), int | float):
            return float(metrics[name])
    return None


UNITS = {
    "scenes": ("images",),
    "ingest": ("read", "rows"),
    "paraphrase_1": ("generated",),
    "paraphrase_2": ("generated",),
    "features": ("images",),
    "evaluate": ("queries", "rows"),
}


@dataclass
class _Captions:
    """Ingested captions, counted; None where nobody can know."""

    read: int | None = None
    accepted: int | None = None
    train: int | None = None
    images: int | None = None


def amounts(settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact]) -> dict[str, Amount]:
    """The amount of work of every stage of a run; what nobody can know yet stays None.

    Where captions are not ingested yet, the sources are read once to count them.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    captions = _count_captions(settings, store, found)
    result = {
        "ingest": Amount(captions.accepted, units=captions.read),
        "features": Amount(captions.images, units=captions.images),
        "bootstrap": _training(captions.train, settings.bootstrap.epochs),
        "report": Amount(units=1),
    }
    if settings.data.scenes is not None:
        result["scenes"] = Amount(settings.data.scenes.images, units=settings.data.scenes.images)
    result |= _paraphrase_amounts(settings, store, found, captions.train)
    result["finetune"] = _training(_pairs(settings, found, captions.train), settings.finetune.epochs)
    if captions.accepted is not None and captions.train is not None:
        held_out = captions.accepted - captions.train
        result["evaluate"] = Amount(held_out, units=held_out)
    return result


def _count_captions(settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact]) -> _Captions:
    if "ingest" in found:
        metrics = found["ingest"].manifest.metrics
        train = metrics.get("splits", {}).get("train", 0)
        return _Captions(metrics.get("read"), metrics.get("accepted"), train, metrics.get("images"))
    scenes = settings.data.scenes
    if scenes is not None and "scenes" not in found:
        captions = scenes.images * CAPTIONS_PER_SCENE
        return _Captions(captions, captions, round(captions * (1 - scenes.held_out)), scenes.images)
    from tasks.stages.ingest import scan

    total, train, images = 0, 0, KeySet()
    for batch in scan(settings, store):
        total += batch.num_rows
        train += batch.column("split").to_pylist().count("train")
        images.add(text_keys([image for image in batch.column("image_id").to_pylist() if image is not None]))
    return _Captions(total, total, train, len(images))


def _paraphrase_amounts(
    settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact], train: int | None
) -> dict[str, Amount]:
    steps = ("paraphrase_1", "paraphrase_2")
    done = {name: found[name].manifest.metrics.get("captions") for name in steps if name in found}
    if len(done) == len(steps):
        return {name: Amount(rows, 0, 0, 0.0) for name, rows in done.items()}
    if train is None:
        return {name: Amount(done.get(name)) for name in steps}
    if settings.data.scenes is not None and "scenes" not in found:
        # Nothing is rendered, so every caption may be a request of its own.
        rows = round(train * settings.paraphrase.fraction)
        tokens = round(rows * TOKENS_PER_REQUEST)
        return {name: _asked(settings, rows, rows, tokens) for name in steps}
    from tasks.requests import count_requests

    missing = count_requests(settings, store, found)
    tokens = missing.prompt_tokens + missing.completion_tokens
    requests = {"paraphrase_1": missing.step_1, "paraphrase_2": missing.step_2 + missing.step_2_expected}
    return {
        name: _asked(settings, missing.captions, count, round(tokens * count / max(missing.total, 1)))
        for name, count in requests.items()
    }


def _asked(settings: Settings, rows: int, requests: int, tokens: int) -> Amount:
    if settings.paraphrase.engine == "file":
        # Looking answers up in a file asks no model, and takes a fraction of the time.
        return Amount(rows, 0, 0, rows / 30)
    return Amount(rows, requests, tokens, float(requests))


def _pairs(settings: Settings, found: Mapping[str, Artifact], train: int | None) -> int | None:
    """Captions with both paraphrases; before anybody knows how many pass the gates, all of the chosen share."""
    if "paraphrase_2" in found:
        return found["paraphrase_2"].manifest.metrics.get("accepted")
    return None if train is None else round(train * settings.paraphrase.fraction)


def _training(rows: int | None, epochs: float) -> Amount:
    return Amount(rows, units=None if rows is None else rows * epochs)
