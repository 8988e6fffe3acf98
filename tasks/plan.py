"""The plan of a run: what is cached, resumable or to run, why, how much work it is, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from paraclip.storage.artifacts import SOURCE, Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import BUILT_IN, candidates_of
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip.tasks.stages.features import images_to_encode
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions, need_rows
from paraclip.tasks.stages.paraphrase import STEPS, step_options
from paraclip.tasks.stages.queries import QUERIES, chosen_captions
from paraclip.tasks.steps_left import StepLeft, look_up, queries_left, steps_left
from paraclip_core.captions.counts import listed_reasons
from paraclip_core.clip.reference import LOSSES, has_logit_bias
from paraclip_core.errors import ArtifactError, InputError, ParaclipError
from paraclip_core.evaluation.measured_gains import what_others_saw
from paraclip_core.gone import GONE
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines import ENGINES, CheckedEngine, EngineEntry, PaidEngine
from paraclip_core.paraphrase.filters import known_wrong
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.settings import fields

State = Literal["cached", "resumable", "to run", "damaged"]
SHOWN = 60
ASSUMED = {"small-model": {1: 0.82, 2: 0.67}, "capable": {1: 0.95, 2: 0.95}}
"""Share of rows that the filters accept: measured for the demo's model on scenes, expected for a capable one."""
FAR_LESS = 0.1
"""Share of the planned work below which an earlier artifact says little about its time."""
QUESTION_TOKENS = 340
"""Tokens of a question to the LLM judge, including its examples; measured."""


@dataclass(frozen=True)
class Amount:
    """The work of one stage."""

    rows: int | None = None
    """Rows, images or captions that it would read or has read; None if that is unknown before it runs. Each step reads
    the output of the one before."""
    requests: int | None = None
    """Requests to the language model that are not yet in the answers cache."""
    tokens: int | None = None
    """Tokens of those requests, prompts and longest answers together."""
    units: float | None = None
    """Units of work to which its time is proportional, see :func:`units_of`."""
    spend: float | None = None
    """Cost of the tokens, in the currency of the configured prices; None without prices."""
    note: str = ""
    """Assumptions, and the source of the estimate."""


@dataclass(frozen=True)
class StagePlan(Amount):
    """The plan of one stage."""

    _: KW_ONLY
    stage: str
    fingerprint: str
    state: State
    why: tuple[str, ...] = ()
    """Why it would run: the differences from the nearest artifact of the same stage."""
    seconds: float | None = 0.0
    """Estimated wall time; None if there is no finished stage to estimate from."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run."""

    stages: list[StagePlan]
    notes: list[str]
    """Further notes before it runs."""


def plan_run(run: Run) -> RunPlan:
    """Plan a run, one entry per stage, in order. Only the hashes of source files and the cache's index are written.

    If captions are not ingested yet, the sources are read to count them.
    """
    run.need_files()
    need_rows(run)
    artifacts: dict[str, Artifact] = {}
    damaged: dict[str, str] = {}
    for name in run.stages:
        try:
            if (artifact := run.artifact(name)) is not None:
                artifacts[name] = artifact
        except ArtifactError as error:
            damaged[name] = str(error)
    with TempDir("plan-") as scratch:
        captions = ingested_captions(run, artifacts, scratch)
        if captions.rejected and not captions.accepted:
            raise InputError(
                f"none of the {captions.read} rows would be accepted ({listed_reasons(captions.rejected)}). Fix the "
                "files, name their columns in data.sources[].columns, or loosen the options"
            )
        sizes = amounts(run, artifacts, captions)
        own, others = _runs(run)
        stages = []
        for name, node in run.nodes.items():
            amount = sizes.get(name, Amount())
            if name in artifacts:
                stages.append(StagePlan(amount.rows, 0, 0, stage=name, fingerprint=node.fingerprint, state="cached"))
                continue
            finished = run.store.list(name)
            seconds, basis = estimate(node, amount, finished)
            amount = replace(amount, note="; ".join(filter(None, (basis, amount.note))))
            state: State = "resumable" if run.store.resumable(name, node.fingerprint) else "to run"
            why = _reasons(node, finished, own, others)
            if name in damaged:
                state, why = "damaged", [damaged[name]]
            planned = StagePlan(**vars(amount), stage=name, fingerprint=node.fingerprint, state=state, why=tuple(why))
            stages.append(replace(planned, seconds=seconds))
        notes = check_before_paying(run, captions, planned=True)
    pairs = next((stage.rows or 0 for stage in stages if stage.stage == "finetune" and stage.state != "cached"), 0)
    held_out = round(pairs * run.settings.finetune.validation)
    few = corpus_of(run.settings).few_for_alpha(held_out, held_out, run.settings.finetune.alpha.grid)
    notes += filter(None, [few, what_others_saw(pairs) if pairs else None, _loss_note(run.settings.model.base)])
    if captions.rejected:
        notes.append(f"ingest leaves out {listed_reasons(captions.rejected)} of {captions.read} rows")
    asking = {stage.stage for stage in stages if stage.requests}
    return RunPlan(stages, notes + _engine_notes(run, asking))


def _loss_note(base: str) -> str:
    sigmoid = base != BUILT_IN and has_logit_bias(base)
    return f"loss: {' or '.join(LOSSES.values()) if sigmoid is None else LOSSES[sigmoid]}"


def _engine_notes(run: Run, asking: set[str]) -> list[str]:
    """Notes on the filters, and on whether the engines of the stages that have something to ask can answer."""
    paraphraser = run.paraphraser
    engine, chosen = paraphraser.options.engine, paraphraser.options.filters.preset
    why = f"suits the engine {engine}" if chosen == "auto" else "as set"
    notes = [f"filters: {paraphraser.filters.preset} ({why}; docs/filters.md)"]
    if paraphraser.facts.asks and (wrong := known_wrong(paraphraser.filters.preset)):
        judge = paraphraser.judge
        after = "paraphrase.judge asks a model about each" if judge is None else f"{judge.model} judges what is left"
        notes.append(f"what the filters do not see: {wrong}; {after}")
    asked: list[Paraphraser] = []
    of_steps = (paraphraser, paraphraser.judge) if asking & STEPS.keys() else ()
    for one in (*of_steps, run.query_paraphraser if QUERIES.name in asking else None):
        if one is not None and not any(one.shares_engine(other) for other in asked):
            asked.append(one)
    return notes + list(dict.fromkeys(filter(None, map(_cannot_answer, asked))))


def _cannot_answer(paraphraser: Paraphraser) -> str | None:
    """The warning that an engine cannot answer; None if it can, or if that is unknown."""
    engine = paraphraser.engine()
    if not isinstance(engine, CheckedEngine):
        return None
    with closing(engine):
        try:
            engine.check()
        except ParaclipError as error:
            return f"warning: the run would stop at its first request: {error}"
    return None


def _runs(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Fingerprints of the last run of this name, by stage; and the names of other runs, by fingerprint."""
    own: dict[str, str] = {}
    others: dict[str, str] = {}
    for report in run.store.list("report"):
        stages = {**report.manifest.inputs, "report": report.fingerprint}
        name = report.manifest.options.get("name")
        if name == run.settings.name:
            own = stages
        else:
            others |= dict.fromkeys(stages.values(), str(name))
    return own, others


def _reasons(node: Node, earlier: list[Artifact], own: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    if not earlier:
        return ["never ran under this root"]
    last = [artifact for artifact in earlier if artifact.fingerprint == own.get(node.name)]
    candidates = last or [one for one in earlier if one.fingerprint not in others] or earlier
    # The newest of the nearest: the user asks about the latest change.
    nearest = min(reversed(candidates), key=lambda artifact: len(differences(artifact, node)))
    reasons = differences(nearest, node) or ["its artifact was deleted"]
    if last:
        return reasons
    name = others.get(nearest.fingerprint)
    whose = "an unfinished run" if name is None else f"a run of another name, {name!r},"
    return [f"no run of this name is finished; {whose} of {nearest.manifest.created[:16]} is the nearest:", *reasons]


def differences(artifact: Artifact, node: Node) -> list[str]:
    """Differences of a stage's draft from an artifact of the same stage, one reason per line, old → new."""
    manifest, draft = artifact.manifest, node.draft
    old, new = dict(_flat(manifest.options)), dict(_flat(draft.options))
    changed_code = manifest.stage_version != draft.stage_version
    # An option of an earlier version is not a lost setting.
    dropped = {key for key in old.keys() - new.keys() if changed_code or _is_gone(key)}
    reasons = ["a new version of the stage"] if changed_code or dropped else []
    reasons += [
        f"option {key}: {_shown(old, key)} → {_shown(new, key)}"
        for key in sorted((old.keys() | new.keys()) - dropped)
        if old.get(key) != new.get(key) or (key in old) != (key in new)
    ]
    for key in sorted(manifest.inputs.keys() | draft.inputs.keys()):
        before, after = manifest.inputs.get(key), draft.inputs.get(key)
        if before == after:
            continue
        if key.startswith(SOURCE):
            what = "is new" if before is None else "is gone" if after is None else "has other contents"
            reasons.append(f"file {key.removeprefix(SOURCE)} {what}")
        else:
            reasons.append(f"input {key}: {(before or '(none)')[:12]} → {(after or '(none)')[:12]}")
    return reasons


def _is_gone(key: str) -> bool:
    """Whether the code no longer knows an option of a manifest, whose path may lack its first groups."""
    parts = ["0" if part.isdecimal() else part for part in key.split(".")]
    groups = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]

    def named(paths: Iterable[str]) -> bool:
        return any(f".{path}".endswith(f".{group}") for path in paths for group in groups)

    return named(GONE) and not any(f".{path}".endswith(f".{groups[-1]}") for path, _ in fields())


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, list | tuple) and value:
        items = enumerate(value)
    else:
        yield path or "options", list(value) if isinstance(value, tuple) else value
        return
    for key, below in items:
        yield from _flat(below, f"{path}.{key}" if path else str(key))


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "(none)"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def estimate(node: Node, amount: Amount, earlier: Sequence[Artifact]) -> tuple[float | None, str]:
    """Seconds, scaled by work from the newest of the stage's finished artifacts (oldest first), and its name.

    A different engine has a different speed. If the earlier artifact's amount of work is unknown, its time is the best
    guess.
    """
    engine = node.draft.options.get("engine")
    alike = [one.manifest for one in earlier if one.manifest.options.get("engine") == engine]
    if amount.units is None or not alike:
        return None, ""
    work = [units_of(node.stage, manifest.metrics) for manifest in alike]
    # One that did far less mostly measures the startup time.
    enough = [number for number, units in enumerate(work) if units is None or units >= FAR_LESS * amount.units]
    chosen = enough[-1] if enough else max(range(len(work)), key=lambda number: work[number] or 0)
    before = work[chosen] or amount.units
    seconds = alike[chosen].wall_seconds * (amount.units / before) if before else 0.0
    if rate := alike[chosen].metrics.get("samples_per_second"):
        # A training that resumed, or found candidates, took less time than its samples.
        seconds = max(seconds, amount.units / rate)
    return round(seconds, 1), f"as {node.name}/{alike[chosen].fingerprint[:12]}"


def units_of(stage: Stage, metrics: Mapping[str, Any]) -> float | None:
    """A finished stage's units of work: requests, samples seen in training, images or rows."""
    return next((float(metrics[name]) for name in stage.units if isinstance(metrics.get(name), int | float)), None)


def amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """The amount of work of every built-in stage; unknown amounts are None."""
    settings = run.settings
    result = {
        "ingest": Amount(captions.read, units=captions.read),
        "features": _image_amount(run, artifacts, captions),
        "built_in_base": _training(Amount(captions.train), settings.built_in_base.epochs),
        "report": Amount(units=1),
    }
    if settings.data.scenes is not None:
        result["scenes"] = Amount(settings.data.scenes.images, units=settings.data.scenes.images)
    result |= _asking_amounts(run, artifacts, captions)
    candidates = len(candidates_of(settings))
    tuning = _training(result.pop("pairs"), settings.finetune.epochs * candidates)
    several = f"{candidates} candidates are trained" if candidates > 1 else ""
    result["finetune"] = replace(tuning, note="; ".join(filter(None, (several, tuning.note))))
    if settings.evaluate.control:
        result["control"] = result["finetune"]
    if captions.accepted is not None:
        held_out = captions.accepted - captions.train
        result["evaluate"] = Amount(held_out, units=held_out)
    return result


def _image_amount(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> Amount:
    if corpus_of(run.settings).links:
        return Amount(note="an existing index is checked and linked, no image is encoded")
    images = captions.images
    if images and "features" in run.stages and "features" not in artifacts:
        new = images_to_encode(run, captions.folder / "captions")
        if new is not None:
            return Amount(new, units=new, note=f"{images - new} of {images} images were encoded before")
    return Amount(images, units=images)


class _Rates(NamedTuple):
    """Expected rates of a step, from its newest finished run with the same engine: the share of accepted rows, the
    source of that figure, and the tokens of a request (0: unknown, or of another prompt, sampling or model)."""

    share: float
    basis: str
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0


def _rates(run: Run, paraphraser: Paraphraser, step: int) -> _Rates:
    preset, stage = paraphraser.filters.preset, f"paraphrase_{step}"
    alike = [
        artifact.manifest
        for artifact in run.store.list(stage)
        if artifact.manifest.options.get("engine") == paraphraser.options.engine
        and artifact.manifest.options.get("filters", {}).get("preset") == preset
        and artifact.manifest.metrics.get("captions")
    ]
    metrics, now = (alike[-1].metrics, step_options(paraphraser, step)) if alike else ({}, {})
    same = alike and all(alike[-1].options.get(name) == now.get(name) for name in ("model", "prompt", "sampling"))
    generated = metrics.get("generated", 0) if same else 0
    tokens = [metrics.get(name, 0) / generated if generated else 0.0 for name in ("prompt_tokens", "completion_tokens")]
    if preset == "off":
        return _Rates(1.0, f"all of {stage} accepted", *tokens)
    if alike:
        # Step 2 counts paraphrases; a caption may have several.
        share = metrics["accepted" if step == 1 else "kept"] / metrics["captions"]
        return _Rates(share, f"{share:.0%} accepted as in {stage}/{alike[-1].fingerprint[:12]}", *tokens)
    share = ASSUMED[preset][step]
    return _Rates(share, f"{share:.0%} of {stage} accepted (assumed)")


class _Bill(NamedTuple):
    """What one engine is asked in one step; each engine has its own prices and spending cap."""

    engine: PaidEngine
    model: tuple[str, str]
    """Names of engine and model, whose earlier answers count towards the cap."""
    tokens: tuple[float, float]
    """Tokens of prompts and of answers."""
    cap: str
    """The option that sets the cap."""


@dataclass(frozen=True)
class _Billed(Amount):
    """The work of a stage that asks language models."""

    steps: tuple[tuple[_Bill, ...], ...] = ()
    """The bills of each of its steps."""


def _asking_amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """Amounts of every stage that asks a language model, and of the `pairs` that training gets; each notes whether a
    spending cap stops it."""
    return _under_caps(run, _paraphrase_amounts(run, artifacts, captions) | _query_amounts(run, artifacts, captions))


def _query_amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """The amount of both steps of held-out queries together; empty if the run has none."""
    name, paraphraser = QUERIES.name, run.query_paraphraser
    if name not in run.stages or paraphraser is None:
        return {}
    if name in artifacts:
        return {name: Amount(artifacts[name].manifest.metrics.get("captions"), 0, 0, 0.0)}
    if not paraphraser.facts.asks:
        rows = chosen_captions(captions.folder, run.settings).num_rows
        return {name: Amount(rows, 0, 0, float(rows))}
    left = queries_left(run, artifacts, captions)
    if not left[1].rows:
        return {name: Amount(0, 0, 0, 0.0, note=f"no held-out caption of split {run.settings.evaluate.split!r}")}
    first, second, _ = _step_amounts(run, paraphraser, left[1], left[2])
    requests, tokens = (first.requests or 0) + (second.requests or 0), (first.tokens or 0) + (second.tokens or 0)
    spend = None if first.spend is None else round(first.spend + (second.spend or 0), 4)
    notes = (note for amount in (first, second) for note in amount.note.split("; ") if note)
    note = "; ".join(dict.fromkeys(notes))
    return {name: _Billed(first.rows, requests, tokens, float(requests), spend, note, first.steps + second.steps)}


def _paraphrase_amounts(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> dict[str, Amount]:
    """Amounts of both steps, and of the `pairs` that they produce."""
    done = {name: artifacts[name].manifest.metrics for name in STEPS if name in artifacts}
    finished = {name: Amount(metrics.get("captions"), 0, 0, 0.0) for name, metrics in done.items()}
    if len(done) == len(STEPS):
        return finished | {"pairs": Amount(done["paraphrase_2"].get("accepted"))}
    if not run.paraphraser.facts.asks:
        there = look_up(run, artifacts, captions)
        steps = zip(STEPS, (there.captions, there.paraphrases), strict=True)
        looked_up = {name: Amount(rows, 0, 0, float(rows)) for name, rows in steps}
        return looked_up | finished | {"pairs": Amount(there.pairs)}
    left = steps_left(run, artifacts, captions)
    # A finished step 1 passes on its rows.
    handed_on = done.get("paraphrase_1", {}).get("accepted", left[2].rows)
    first = left.get(1, StepLeft(handed_on, accepted=handed_on))
    *steps, pairs = _step_amounts(run, run.paraphraser, first, left[2])
    return dict(zip(STEPS, steps, strict=True)) | finished | {"pairs": pairs}


def _step_amounts(
    run: Run, paraphraser: Paraphraser, first: StepLeft, second: StepLeft
) -> tuple[_Billed, _Billed, Amount]:
    """Amounts of both steps and of the pairs that they produce, from what is left of each."""
    options = paraphraser.options
    rates = _rates(run, paraphraser, 1), _rates(run, paraphraser, 2)
    coming = round((first.rows - first.accepted - first.rejected) * rates[0].share)
    # The maximum number of paraphrases for each accepted caption.
    paraphrases = min(options.keep, options.sampling.draws)
    rows_2 = second.rows + coming * paraphrases
    open_2 = rows_2 - second.accepted - second.rejected
    fresh = min(coming, round(first.new_inputs * rates[0].share)) * paraphrases
    asked = replace(second, missing=second.missing + fresh)
    if not asked.completion_tokens and coming:
        asked = replace(asked, prompt_tokens=first.prompt_tokens, completion_tokens=first.completion_tokens)
    pairs = min(second.accepted + round(open_2 * rates[1].share), first.accepted + coming)
    return (
        _asked(paraphraser, 1, first.rows, first, rates[0], ""),
        _asked(paraphraser, 2, rows_2, asked, rates[1], rates[0].basis if coming else ""),
        Amount(pairs, note=rates[1].basis if open_2 else ""),
    )


def _asked(paraphraser: Paraphraser, step: int, rows: int, left: StepLeft, rates: _Rates, assumed: str) -> _Billed:
    requests, notes = left.missing, [assumed]
    prompt = requests * (rates.prompt_tokens or left.prompt_tokens)
    answers = requests * (rates.completion_tokens or left.completion_tokens)
    asked = [(paraphraser, (prompt, answers))]
    if requests and paraphraser.words(step):
        notes.append("without its requests for single words")
    if (judge := paraphraser.judge) is not None:
        # One for each row that will be accepted, and another one if it is refused.
        questions = round((rows - left.accepted - left.rejected) * rates.share)
        if questions:
            notes.append(f"{questions} questions to the judge {judge.model} among them, at least")
        tokens = questions * QUESTION_TOKENS, questions * 2
        requests, prompt, answers = requests + questions, prompt + tokens[0], answers + tokens[1]
        shared = judge.shares_engine(paraphraser)
        asked = [(paraphraser, (prompt, answers))] if shared else [*asked, (judge, tokens)]
    if paraphraser.options.attempts > 1 and left.missing and paraphraser.filters.preset != "off":
        # How often a missing answer will lead to another request is unknown.
        notes.append(f"requests after a rejected answer (attempts={paraphraser.options.attempts}) come on top")
    bills = tuple(bill for one, tokens in asked if (bill := _bill(one, tokens)) is not None)
    costs = [bill.engine.cost(*bill.tokens) for bill in bills if bill.engine.priced]
    spend, note = round(sum(costs), 4) if costs else None, "; ".join(filter(None, notes))
    return _Billed(rows, requests, round(prompt + answers), float(requests), spend, note, (bills,))


def _bill(paraphraser: Paraphraser, tokens: tuple[float, float]) -> _Bill | None:
    """The bill for these tokens; None if the engine's answers cost nothing."""
    engine = paraphraser.engine()
    if not isinstance(engine, PaidEngine):
        return None
    own = ENGINES.get(paraphraser.options.engine, EngineEntry("")).own
    cap = f"{paraphraser.context.options_at}.{own}.max_spend"
    return _Bill(engine, (engine.name, engine.model), tokens, cap)


def _under_caps(run: Run, asked: Mapping[str, Amount]) -> dict[str, Amount]:
    """The same amounts, with a note on stages that a spending cap stops.

    As in a run, an engine counts what it is asked in a step and, at its own prices, all that its model was asked before
    that step, by whichever engine.
    """
    noted, earlier = dict(asked), list[_Bill]()
    with closing(open_answers(run.store)) as answers:
        paid_tokens = cache(answers.paid_tokens)
        for name, amount in asked.items():
            if not isinstance(amount, _Billed):
                continue
            stops: dict[str, str] = {}
            for bills in amount.steps:
                for engine, model, tokens, cap in (bill for bill in bills if bill.engine.max_spend):
                    before = [paid_tokens(*model), *(bill.tokens for bill in earlier if bill.model == model)]
                    left = max(engine.max_spend - sum(engine.cost(*each) for each in before), 0)
                    if engine.cost(*tokens) > left:
                        stops.setdefault(cap, f"{cap}={engine.max_spend:g} stops it, {left:.4g} is left to spend")
                earlier += bills
            note = "; ".join(filter(None, (*stops.values(), amount.note)))
            noted[name] = Amount(amount.rows, amount.requests, amount.tokens, amount.units, amount.spend, note)
    return noted


def _training(rows: Amount, epochs: float) -> Amount:
    return replace(rows, units=None if rows.rows is None else rows.rows * epochs)
