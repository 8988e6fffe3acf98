"""How much work each stage of a run has, before it runs: rows, requests, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from paraclip_core.captions.counts import Counts
from paraclip_core.captions.ids import text_keys
from paraclip_core.captions.seen import KeySet
from paraclip_core.config import ScenesOptions, Settings
from paraclip_core.paraphrase.estimate import (
    Asked,
    Judged,
    MissingRequests,
    asks_words,
    further_words,
    word_requests,
)
from paraclip_core.paraphrase.relevant import relevant
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore
from tasks.cap import left_to_spend
from tasks.rates import Measured, measured_rate

__all__ = ["Amount", "amounts", "units_of"]

MOST_SCENES = 20_000
"""Images of which the texts are made to be counted, which takes seconds; of more the counts are estimated."""

CAPTIONS_PER_SCENE, TEXTS_PER_SCENE, WORDS = 2, 0.42, 42
"""Captions of an image, different ones of training images for each image, and content words of them all."""

PROMPT_TOKENS, ANSWER_TOKENS = 240, 21
"""Of a request with the few-shot prompts, measured."""

STEPS = ("paraphrase_1", "paraphrase_2")


@dataclass(frozen=True)
class Amount:
    """The work of one stage."""

    rows: int | None = None
    """What it reads: images for scenes and features, rows elsewhere. Each step reads what the one before hands on."""
    requests: int | None = None
    tokens: int | None = None
    units: float | None = None
    """What its time grows with, see :func:`units_of`."""
    spend: float | None = None
    """What the tokens cost, in the currency of the configured prices; None without prices."""
    note: str = ""
    """What is assumed in it."""


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
}


@dataclass
class _Captions:
    """Ingested captions, counted; None where nobody can know."""

    read: int | None = None
    accepted: int | None = None
    train: int | None = None
    images: int | None = None


def amounts(
    settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact], progress: Progress = silent
) -> dict[str, Amount]:
    """The amount of work of every stage of a run; what nobody can know yet stays None.

    Where captions are not ingested yet, the sources are read once to count them.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    captions = _count_captions(settings, store, found)
    result = {
        "ingest": Amount(captions.read, units=captions.read),
        "features": Amount(captions.images, units=captions.images),
        "bootstrap": _training(Amount(captions.train), settings.bootstrap.epochs),
        "report": Amount(units=1),
    }
    if settings.data.scenes is not None:
        result["scenes"] = Amount(settings.data.scenes.images, units=settings.data.scenes.images)
    result |= _paraphrase_amounts(settings, store, found, captions, progress)
    result["finetune"] = _training(result.pop("pairs"), settings.finetune.epochs)
    if captions.accepted is not None and captions.train is not None:
        held_out = captions.accepted - captions.train
        result["evaluate"] = Amount(held_out, units=held_out)
    return result


def _count_captions(settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact]) -> _Captions:
    if "ingest" in found:
        metrics = found["ingest"].manifest.metrics
        train = metrics.get("splits", {}).get("train", 0)
        return _Captions(metrics.get("read"), metrics.get("accepted"), train, metrics.get("images"))
    if scenes := _too_many_scenes(settings, found):
        captions = scenes.images * CAPTIONS_PER_SCENE
        return _Captions(captions, captions, round(captions * (1 - scenes.held_out)), scenes.images)
    from tasks.stages.ingest import scan_outcomes

    counts, images = Counts(), KeySet()
    for outcome in scan_outcomes(settings, store):
        counts.note(outcome)
        images.add(text_keys([i for i in outcome.accepted.column("image_id").to_pylist() if i is not None]))
    return _Captions(counts.read, counts.accepted, counts.splits["train"], len(images))


def _too_many_scenes(settings: Settings, found: Mapping[str, Artifact]) -> ScenesOptions | None:
    scenes = settings.data.scenes
    if scenes is None or "scenes" in found or "ingest" in found:
        return None
    return scenes if scenes.images > MOST_SCENES else None


def _paraphrase_amounts(
    settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact], captions: _Captions, progress: Progress
) -> dict[str, Amount]:
    """Both steps, and the `pairs` that they hand on."""
    done = {name: found[name].manifest.metrics for name in STEPS if name in found}
    pairs = Amount(done.get("paraphrase_2", {}).get("accepted"))
    if len(done) == len(STEPS):
        return {name: Amount(metrics.get("captions"), 0, 0, 0.0) for name, metrics in done.items()} | {"pairs": pairs}
    from tasks.acceptance import acceptance

    missing = _missing(settings, store, found, captions, progress)
    first, second = acceptance(settings, store, 1, missing.rows_1), acceptance(settings, store, 2, missing.rows_2)
    before = done.get("paraphrase_1", {})
    rows_1 = before.get("captions", missing.captions)
    rows_2 = missing.rows_1.accepted + round(missing.rows_1.open * first.share)
    open_2 = missing.rows_2.open + rows_2 - missing.rows_1.accepted
    expected = missing.expected.share(first.share)
    words_1, words_2 = _words(missing, expected)
    asked = {
        "paraphrase_1": _asked(
            settings,
            rows_1,
            missing.first + words_1,
            _joined(_about_words(words_1), _again(settings) if missing.rows_1.open else ""),
        ),
        "paraphrase_2": _asked(
            settings,
            rows_2,
            missing.second + expected + words_2,
            _joined(
                first.basis if missing.rows_1.open else "",
                _about_words(words_2),
                _again(settings) if open_2 else "",
            ),
        ),
    }
    return _under_cap(settings, store, asked) | {
        # One that is finished while step 1 was deleted says how many there are.
        "pairs": pairs
        if "paraphrase_2" in done
        else Amount(missing.rows_2.accepted + round(open_2 * second.share), note=second.basis if open_2 else ""),
    }


def _missing(
    settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact], captions: _Captions, progress: Progress
) -> MissingRequests:
    from tasks.requests import count_captions, count_requests

    scenes, nothing = _too_many_scenes(settings, found), Asked()
    rate = measured_rate(settings, store)
    if scenes is None and settings.paraphrase.engine != "file":
        return _as_measured(count_requests(settings, store, found, progress), rate)
    if scenes is not None:
        # Every text may be a request of its own: what is known already takes long to find out.
        share = settings.paraphrase.fraction
        rows, texts = round((captions.train or 0) * share), round(scenes.images * TEXTS_PER_SCENE * share)
        prompt, answers = (rate.prompt_tokens, rate.completion_tokens) if rate else (0, 0)
        first = Asked(texts, round(texts * (prompt or PROMPT_TOKENS)), round(texts * (answers or ANSWER_TOKENS)))
        words = word_requests(WORDS) if asks_words(relevant(settings.paraphrase)) else None
        return MissingRequests(rows, first, nothing, first, words, Judged(0, rows), Judged())
    # A file asks no model, so what answers are known, and how they are judged, does not matter.
    if "paraphrase_1" in found:
        rows = found["paraphrase_1"].manifest.metrics.get("accepted", 0)
        return MissingRequests(rows, nothing, nothing, nothing, None, Judged(rows), Judged(0, rows))
    rows = count_captions(settings, store, found)
    return MissingRequests(rows, nothing, nothing, nothing, None, Judged(0, rows), Judged())


def _words(missing: MissingRequests, expected: Asked) -> tuple[Asked, Asked]:
    """Requests for single words at both steps; `expected` are step 2's requests for texts that are not there yet."""
    if missing.words is None:
        return Asked(), Asked()
    new, texts = missing.words.requests, missing.expected.requests
    known_1, known_2 = (rows.accepted + rows.rejected for rows in (missing.rows_1, missing.rows_2))
    further_1 = further_words(1, new, texts, known_1)
    further_2 = further_words(2, new, missing.second.requests + expected.requests, known_2)
    return missing.words + word_requests(further_1), word_requests(further_2)


def _about_words(words: Asked) -> str:
    if not words.requests:
        return ""
    return f"about {words.requests} of the requests for single words, as on scenes and Flickr8k (half to twice as many)"


def _as_measured(missing: MissingRequests, rate: Measured | None) -> MissingRequests:
    """Its tokens as they would be if other requests are to their estimates as the measured ones are."""
    if rate is None:
        return missing
    factors = rate.prompt_factor, rate.completion_factor
    first, second, expected = (some.tokens(*factors) for some in (missing.first, missing.second, missing.expected))
    return replace(missing, first=first, second=second, expected=expected)


def _asked(settings: Settings, rows: int, asked: Asked, note: str = "") -> Amount:
    chosen = settings.paraphrase
    if chosen.engine == "file":
        # Looking answers up in a file asks no model, and takes a fraction of the time.
        return Amount(rows, 0, 0, rows / 30, note=note)
    priced = chosen.engine == "openai" and chosen.openai.priced
    spend = round(chosen.openai.cost(asked.prompt_tokens, asked.completion_tokens), 4) if priced else None
    tokens = asked.prompt_tokens + asked.completion_tokens
    return Amount(rows, asked.requests, tokens, float(asked.requests), spend, note)


def _again(settings: Settings) -> str:
    """What an answer that is not there yet may lead to; nobody knows how often."""
    chosen = settings.paraphrase
    if chosen.attempts == 1 or chosen.engine == "file" or chosen.chosen_gates().preset == "paper":
        return ""
    return f"requests after a rejected answer (attempts={chosen.attempts}) come on top"


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _under_cap(settings: Settings, store: ArtifactStore, asked: Mapping[str, Amount]) -> dict[str, Amount]:
    """The same, with a note on the steps that the spending cap stops."""
    left, found = left_to_spend(settings, store), dict(asked)
    if left is None:
        return found
    for name, amount in asked.items():
        if (amount.spend or 0) > left:
            stop = f"max_spend={settings.paraphrase.openai.max_spend:g} stops it, {max(left, 0):.4g} is left to spend"
            found[name] = replace(amount, note=_joined(stop, amount.note))
        left -= amount.spend or 0
    return found


def _training(rows: Amount, epochs: float) -> Amount:
    return replace(rows, units=None if rows.rows is None else rows.rows * epochs)
