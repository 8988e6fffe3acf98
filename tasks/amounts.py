"""How much work each stage of a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import candidates_of, of_control
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.features import images_to_encode
from paraclip.tasks.stages.ingest import IngestedCaptions
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip.tasks.stages.queries import NAME as QUERIES
from paraclip.tasks.steps_left import Amount, asked_amounts


def amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """The amount of work of every stage; unknown amounts are None."""
    settings = run.settings
    result = {
        "ingest": Amount(captions.read, units=captions.read),
        "features": _image_amount(run, artifacts, captions),
        "built_in_base": _training(Amount(captions.train), settings.built_in_base.epochs),
        "report": Amount(units=1),
        **_query_amount(run, artifacts, captions),
    }
    if "paraphrase_2" in artifacts:
        pairs = Amount(artifacts["paraphrase_2"].manifest.metrics.get("accepted"))
    else:
        *steps, pairs = asked_amounts(run, "paraphrase_2", artifacts, captions)
        result |= zip(STEPS, steps, strict=True)
    tunings = {"finetune": settings} | ({"control": of_control(settings)} if settings.evaluate.control else {})
    for name, tuned in tunings.items():
        candidates = len(candidates_of(tuned))
        amount = _training(pairs, settings.finetune.epochs * candidates)
        several = f"{candidates} candidates are trained" if candidates > 1 else ""
        result[name] = replace(amount, note="; ".join(filter(None, (several, amount.note))))
    if captions.accepted is not None:
        held_out = captions.accepted - captions.train
        result["evaluate"] = Amount(held_out, units=held_out)
    finished = {name: artifact.manifest.metrics for name, artifact in artifacts.items() if name in (*STEPS, QUERIES)}
    return result | {name: Amount(metrics.get("captions"), 0, 0) for name, metrics in finished.items()}


def _query_amount(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """Both steps of held-out queries together; empty if they are finished, or if the run has none."""
    if QUERIES in artifacts or QUERIES not in run.stages:
        return {}
    first, second, _ = asked_amounts(run, QUERIES, artifacts, captions)
    if not first.rows:
        return {QUERIES: Amount(0, 0, 0, 0.0, note=f"no held-out caption of split {run.settings.evaluate.split!r}")}
    requests, tokens = ((first.requests or 0) + (second.requests or 0), (first.tokens or 0) + (second.tokens or 0))
    spend = None if first.spend is None else round(first.spend + (second.spend or 0), 4)
    notes = dict.fromkeys(note for amount in (first, second) for note in amount.note.split("; ") if note)
    units = (first.units or 0) + (second.units or 0)
    return {QUERIES: Amount(first.rows, requests, tokens, units, spend, "; ".join(notes))}


def _image_amount(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> Amount:
    if corpus_of(run.settings).links:
        return Amount(note="an existing index is checked and linked, no image is encoded")
    images = captions.images
    if images and "features" not in artifacts:
        new = images_to_encode(run, captions.folder / "captions")
        if new is not None:
            return Amount(new, units=new, note=f"{images - new} of {images} images were encoded before")
    return Amount(images, units=images)


def _training(rows: Amount, epochs: float) -> Amount:
    return replace(rows, units=None if rows.rows is None else rows.rows * epochs)
