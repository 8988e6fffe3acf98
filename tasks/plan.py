"""The plan of a run: what is cached, resumable or to run, why, how much work it is, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

from paraclip.storage.answers import AnswerStore
from paraclip.storage.artifacts import SOURCE, Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.amounts import amounts
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import BUILT_IN
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip.tasks.stages.ingest import ingested_captions, need_rows
from paraclip.tasks.stages.paraphrase import charge
from paraclip.tasks.steps_left import Amount
from paraclip_core.captions.counts import listed_reasons
from paraclip_core.clip.reference import LOSSES, has_logit_bias
from paraclip_core.errors import ArtifactError, InputError, ParaclipError
from paraclip_core.evaluation.measured_gains import what_others_saw
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines import CheckedEngine, PaidEngine
from paraclip_core.paraphrase.facts import Facts
from paraclip_core.paraphrase.paraphraser import Paraphraser

State = Literal["cached", "resumable", "to run", "damaged"]
SHOWN = 60
FAR_LESS = 0.1
"""Share of the planned work below which an earlier artifact says little about its time."""


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
    base = run.settings.model.base
    sigmoid = base != BUILT_IN and has_logit_bias(base)
    loss = f"loss: {' or '.join(LOSSES.values()) if sigmoid is None else LOSSES[sigmoid]}"
    notes += filter(None, [few, what_others_saw(pairs) if pairs else None, loss])
    if captions.rejected:
        notes.append(f"ingest leaves out {listed_reasons(captions.rejected)} of {captions.read} rows")
    asking = [run.stages[stage.stage] for stage in stages if stage.requests]
    if (second := artifacts.get("paraphrase_2")) is not None and (kept := second.manifest.metrics.get("facts")):
        notes.append(f"the paraphrasing model {Facts(**kept)}")
    return RunPlan(stages, notes + _engine_notes(run, asking))


def _engine_notes(run: Run, asking: list[Stage]) -> list[str]:
    """Notes on the filters, on what is left of spending caps, and on engines of these stages that cannot answer."""
    notes = [f"filters: {run.paraphraser.filters.preset} (docs/filters.md)"]
    asked = [stage.paraphraser(run) for stage in asking if stage.paraphraser is not None]
    with closing(open_answers(run.store)) as answers:
        engine_notes = [note for paraphraser in asked for note in _engine_note(paraphraser, answers)]
    return notes + list(dict.fromkeys(engine_notes))


def _engine_note(paraphraser: Paraphraser, answers: AnswerStore) -> Iterator[str]:
    """What is left of an engine's spending cap, if it has one, and the warning that it cannot answer."""
    with closing(paraphraser.engine()) as engine:
        if isinstance(engine, PaidEngine) and engine.max_spend:
            charge(engine, answers)
            yield f"{engine.cap}={engine.max_spend:g}: {max(engine.max_spend - engine.spent, 0):.4g} is left to spend"
        if isinstance(engine, CheckedEngine):
            try:
                engine.check()
            except ParaclipError as error:
                yield f"warning: the run would stop at its first request: {error}"


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
    candidates = last or [artifact for artifact in earlier if artifact.fingerprint not in others] or earlier
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
    dropped = old.keys() - new.keys() if changed_code else set[str]()
    reasons = ["a new version of the stage"] if changed_code else []
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
    alike = [artifact.manifest for artifact in earlier if artifact.manifest.options.get("engine") == engine]
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
