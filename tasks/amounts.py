"""How much work each stage of a run has, before it runs: rows, requests, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.requests import StepLeft, steps_left
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.features import new_images
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines import PaidEngine, Paraphraser

ASSUMED = {"small-model": {1: 0.82, 2: 0.67}, "capable": {1: 0.95, 2: 0.95}}
"""Share of rows that the gates let pass: the embedded model's on scenes, and what is hoped of a capable one's."""
WORD_TOKENS = 60, 24
"""Of a request for one word: its prompt, and all its answers together; measured."""

QUESTION_TOKENS = 340
"""Of a question to the judge, its examples included; measured."""


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


def units_of(stage: Stage, metrics: Mapping[str, Any]) -> float | None:
    """What a finished stage's time grew with: requests, samples seen in training, images or rows."""
    if stage.trains and "steps" in metrics and "batch_size" in metrics:
        return float(metrics["steps"] * metrics["batch_size"])
    return next((float(metrics[name]) for name in stage.units if isinstance(metrics.get(name), int | float)), None)


def amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None) -> dict[str, Amount]:
    """The amount of work of every built-in stage; what nobody can know yet stays None.

    Without `captions` the sources are read to count them, where they are not ingested yet.
    """
    if captions is None:
        with TempDir("amounts-") as scratch:
            return amounts(run, artifacts, ingested_captions(run, artifacts, scratch))
    settings = run.settings
    result = {
        "ingest": Amount(captions.read, units=captions.read),
        "features": _image_amount(run, artifacts, captions),
        "bootstrap": _training(Amount(captions.train), settings.bootstrap.epochs),
        "report": Amount(units=1),
    }
    if settings.data.scenes is not None:
        result["scenes"] = Amount(settings.data.scenes.images, units=settings.data.scenes.images)
    result |= _paraphrase_amounts(run, artifacts, captions)
    result["finetune"] = _training(result.pop("pairs"), settings.finetune.epochs)
    if settings.evaluate.control:
        result["control"] = result["finetune"]
    if captions.accepted is not None:
        held_out = captions.accepted - captions.train
        result["evaluate"] = Amount(held_out, units=held_out)
    return result


def _image_amount(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> Amount:
    comes = "features" in run.stages and "features" not in artifacts
    new = new_images(run, captions.folder / "captions") if comes and captions.images else None
    if new is None:
        return Amount(captions.images, units=captions.images)
    return Amount(captions.images, units=new, note=f"{new} of {captions.images} images are new by their ids")


@dataclass(frozen=True)
class _Rates:
    """What the newest finished run of a step with the same engine says of the next one."""

    share: float
    """Rows that are accepted."""
    basis: str
    prompt_tokens: float = 0.0
    """Of a request; 0: not told."""
    completion_tokens: float = 0.0


def _rates(run: Run, step: int) -> _Rates:
    options, preset, stage = run.paraphraser.options, run.paraphraser.gates.preset, f"paraphrase_{step}"
    alike = [
        artifact.manifest
        for artifact in run.store.list(stage)
        if artifact.manifest.options.get("engine") == options.engine
        and artifact.manifest.options.get("gates", {}).get("preset") == preset
        and artifact.manifest.metrics.get("captions")
        and "kept" in artifact.manifest.metrics
    ]
    metrics = alike[-1].metrics if alike else {}
    generated = metrics.get("generated", 0)
    tokens = [metrics.get(name, 0) / generated if generated else 0.0 for name in ("prompt_tokens", "completion_tokens")]
    if preset == "off":
        return _Rates(1.0, f"all of {stage} accepted", *tokens)
    if alike:
        # Step 2 counts rewrites, of which a caption may have several.
        share = metrics["accepted" if step == 1 else "kept"] / metrics["captions"]
        return _Rates(share, f"{share:.0%} accepted as in {stage}/{alike[-1].fingerprint[:12]}", *tokens)
    share = ASSUMED[preset][step]
    return _Rates(share, f"{share:.0%} of {stage} accepted (assumed)")


def _paraphrase_amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """Both steps, and the `pairs` that they hand on."""
    done = {name: artifacts[name].manifest.metrics for name in STEPS if name in artifacts}
    finished = {name: Amount(metrics.get("captions"), 0, 0, 0.0) for name, metrics in done.items()}
    if len(done) == len(STEPS):
        return finished | {"pairs": Amount(done["paraphrase_2"].get("accepted"))}
    options = run.paraphraser.options
    if not run.paraphraser.facts.asks:
        return _looked_up(done, round(captions.train * options.fraction))
    left = steps_left(run, artifacts, captions)
    # A finished step 1 hands its rows on.
    handed_on = done.get("paraphrase_1", {}).get("accepted", left[2].rows)
    first = left.get(1, StepLeft(handed_on, accepted=handed_on))
    rates = _rates(run, 1), _rates(run, 2)
    coming = round((first.rows - first.accepted - first.rejected) * rates[0].share)
    # Of a caption that is accepted, as many rewrites as there may be.
    rewrites = min(options.keep, options.sampling.n)
    rows_2 = left[2].rows + coming * rewrites
    open_2 = rows_2 - left[2].accepted - left[2].rejected
    fresh = min(coming, round(first.new_inputs * rates[0].share)) * rewrites
    second = replace(left[2], missing=left[2].missing + fresh)
    if not second.prompt_tokens and coming:
        second = replace(second, prompt_tokens=first.prompt_tokens, completion_tokens=first.completion_tokens)
    amounts = {
        "paraphrase_1": _asked(run.paraphraser, first.rows, first, rates[0], ""),
        "paraphrase_2": _asked(run.paraphraser, rows_2, second, rates[1], rates[0].basis if coming else ""),
    } | finished
    pairs = min(left[2].accepted + round(open_2 * rates[1].share), first.accepted + coming)
    return _under_cap(run, amounts) | {"pairs": Amount(pairs, note=rates[1].basis if open_2 else "")}


def _looked_up(done: Mapping[str, Mapping[str, Any]], rows: int) -> dict[str, Amount]:
    """Steps of an engine that asks nobody: looking answers up takes a fraction of the time."""
    rows = done.get("paraphrase_1", {}).get("accepted", rows)
    return {name: Amount(rows, 0, 0, rows / 30) for name in STEPS} | {"pairs": Amount(rows)}


def _asked(paraphraser: Paraphraser, rows: int, left: StepLeft, rates: _Rates, note: str) -> Amount:
    prompt = left.missing * (rates.prompt_tokens or left.prompt_tokens) + left.words * WORD_TOKENS[0]
    answers = left.missing * (rates.completion_tokens or left.completion_tokens) + left.words * WORD_TOKENS[1]
    attempts, engine = paraphraser.options.attempts, paraphraser.engine()
    priced = isinstance(engine, PaidEngine) and engine.priced
    spend = round(engine.cost(prompt, answers), 4) if isinstance(engine, PaidEngine) and priced else None
    words = f"about {left.words} requests for single words among them (half to twice as many)" if left.words else ""
    # Nobody knows how often an answer that is not there yet leads to another request.
    further = f"requests after a rejected answer (attempts={attempts}) come on top"
    again = further if attempts > 1 and left.missing and paraphraser.gates.preset != "off" else ""
    requests, judged = left.missing + left.words, ""
    if (judge := paraphraser.judge) is not None:
        # One for each row that will be accepted; where it is refused, another one.
        questions = round((rows - left.accepted - left.rejected) * rates.share)
        judged = f"{questions} questions to the judge {judge.model} among them, at least" if questions else ""
        tokens = questions * QUESTION_TOKENS, questions * 2
        asked = judge.engine()
        if isinstance(asked, PaidEngine) and asked.priced:
            spend = round((spend or 0) + asked.cost(*tokens), 4)
        requests, prompt, answers = requests + questions, prompt + tokens[0], answers + tokens[1]
    notes = "; ".join(filter(None, (note, words, judged, again)))
    return Amount(rows, requests, round(prompt + answers), float(requests), spend, notes)


def _under_cap(run: Run, asked: Mapping[str, Amount]) -> dict[str, Amount]:
    """The same, with a note on the steps that the spending cap stops."""
    engine = run.paraphraser.engine()
    if not isinstance(engine, PaidEngine) or not engine.max_spend:
        return dict(asked)
    with closing(open_answers(run.store)) as cache:
        paid = cache.paid_tokens(engine.name, engine.model)
    left = engine.max_spend - engine.cost(*paid)
    noted = dict(asked)
    for name, amount in asked.items():
        if (amount.spend or 0) > left:
            stop = f"max_spend={engine.max_spend:g} stops it, {max(left, 0):.4g} is left to spend"
            noted[name] = replace(amount, note="; ".join(filter(None, (stop, amount.note))))
        left -= amount.spend or 0
    return noted


def _training(rows: Amount, epochs: float) -> Amount:
    return replace(rows, units=None if rows.rows is None else rows.rows * epochs)
