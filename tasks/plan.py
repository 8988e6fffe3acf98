"""What a run would do before it does anything: cached, resumable or to run, why, and what it would cost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from paraclip.storage.artifacts import SOURCE, Artifact, ArtifactStore
from paraclip.storage.files import storage_error
from paraclip.tasks.amounts import Amount, amounts, units_of
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip_core.captions.clean import listed_reasons
from paraclip_core.errors import ArtifactError, ParaclipError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.base import CheckedEngine
from paraclip_core.paraphrase.gates import KNOWN_WRONG
from paraclip_core.report.data import few_for_alpha

State = Literal["cached", "resumable", "to run", "damaged"]
Count = Callable[[Run, Mapping[str, Artifact], IngestedCaptions | None], Mapping[str, Amount]]
Check = Callable[[Run, IngestedCaptions | None], list[str]]
PLANNED = partial(check_before_paying, planned=True)
SHOWN = 60
FIXED_BYTES = {"bootstrap": 78_500_000, "finetune": 78_500_000, "control": 78_500_000, "report": 730_000}
WRITES_ALL = {"paraphrase_1": "captions", "paraphrase_2": "captions", "features": "images"}
"""Stages whose work is what is new and whose artifact holds everything, and the metric that counts its rows."""
MOST_GROWTH = 30
"""A run that did less than this part of the work was mostly start, and says little about the rest."""


@dataclass(frozen=True)
class StagePlan:
    """What would happen to one stage."""

    stage: str
    fingerprint: str
    state: State
    why: tuple[str, ...]
    """Why it would run: what differs from the nearest artifact of the same stage."""
    rows: int | None
    """Rows, images or captions that it would read or has read; None where nobody knows before it runs."""
    requests: int | None
    """Requests to the language model that are not in the generation cache yet."""
    tokens: int | None
    """Tokens of those requests, prompts and longest answers together."""
    seconds: float | None
    """Estimated wall time, 0 where it is cached."""
    bytes: int | None
    """Estimated size of the artifact, or its true size where it is cached."""
    basis: str
    """Where the estimate comes from."""
    spend: float | None = None
    """Estimated cost of the tokens, in the currency of the configured prices; None without prices."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class RunPlan:
    """What would happen in a run."""

    stages: list[StagePlan]
    notes: list[str]
    """What else to know before it runs."""


def plan_run(run: Run, count: Count = amounts, check: Check = PLANNED) -> RunPlan:
    """One entry per stage, in order; nothing is written but the hashes of source files and the cache's index.

    Where captions are not ingested yet, the sources are read to count them.
    """
    _expect_root(run.store.root)
    artifacts: dict[str, Artifact] = {}
    damaged: dict[str, str] = {}
    for name in run.stages:
        try:
            if (artifact := run.artifact(name)) is not None:
                artifacts[name] = artifact
        except ArtifactError as error:
            damaged[name] = str(error)
    with TempDir("plan-") as scratch:
        captions = ingested_captions(run, artifacts, scratch) if "ingest" in run.stages else None
        sizes = count(run, artifacts, captions)
        runs = _runs(run)
        stages = [
            _plan(node, runs, run.store, artifacts.get(name), damaged.get(name), sizes.get(name, Amount()))
            for name, node in run.nodes.items()
        ]
        notes = check(run, captions)
    pairs = next((stage.rows or 0 for stage in stages if stage.stage == "finetune" and stage.state != "cached"), 0)
    held_out = round(pairs * run.settings.finetune.validation)
    notes += filter(None, [few_for_alpha(held_out, held_out)])
    if captions is not None and captions.rejected:
        notes.append(f"ingest leaves out {listed_reasons(captions.rejected)} of {captions.read} rows")
    return RunPlan(stages, notes + _notes(run, sum(stage.requests or 0 for stage in stages)))


def _notes(run: Run, requests: int) -> list[str]:
    """The gates, and whether the engine can be asked."""
    paraphraser = run.paraphraser
    engine, chosen = paraphraser.options.engine, paraphraser.options.gates.preset
    why = f"suits the engine {engine}" if chosen == "auto" else "as set"
    notes = [f"gates: {paraphraser.gates.preset} ({why}; docs/gates.md)"]
    if paraphraser.facts.asks and (wrong := KNOWN_WRONG.get(paraphraser.gates.preset)):
        judge = paraphraser.judge
        after = (
            "; paraphrase.judge asks a model about each" if judge is None else f"; {judge.model} judges what is left"
        )
        notes.append(f"what the gates do not see: {wrong}{after}")
    if requests and isinstance(checked := paraphraser.engine(), CheckedEngine):
        with closing(checked):
            try:
                checked.check()
            except ParaclipError as error:
                notes.append(f"warning: the run would stop at its first request: {error}")
    return notes


def _expect_root(root: Path) -> None:
    try:
        if root.exists():
            if not root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return
        above = next(folder for folder in root.absolute().parents if folder.exists())
        # Permissions do not tell everything: nobody makes a folder in /proc.
        with TemporaryDirectory(prefix=".paraclip-", dir=above):
            pass
    except OSError as error:
        raise storage_error(error, root) from error


def _plan(
    node: Node, runs: _Runs, store: ArtifactStore, artifact: Artifact | None, damage: str | None, amount: Amount
) -> StagePlan:
    name = node.name
    if artifact is not None:
        manifest = artifact.manifest
        return StagePlan(name, node.fingerprint, "cached", (), amount.rows, 0, 0, 0.0, manifest.size(), "its manifest")
    state: State = "resumable" if store.resumable(name, node.fingerprint) else "to run"
    earlier = store.list(name)
    why = (damage,) if damage else tuple(_reasons(node, earlier, runs))
    # Another engine is another speed.
    alike = [a for a in earlier if a.manifest.options.get("engine") == node.draft.options.get("engine")]
    cost = estimate(node.stage, amount, alike)
    return StagePlan(
        name,
        node.fingerprint,
        "damaged" if damage else state,
        why,
        amount.rows,
        amount.requests,
        amount.tokens,
        cost.seconds,
        cost.bytes,
        "; ".join(part for part in (cost.basis, amount.note) if part),
        amount.spend,
    )


@dataclass(frozen=True)
class _Runs:
    """Whose the finished artifacts are, as far as a report says so."""

    own: Mapping[str, str]
    """Fingerprints of the last run of this name, by stage."""
    others: Mapping[str, str]
    """Fingerprint → name of another run."""


def _runs(run: Run) -> _Runs:
    own: dict[str, str] = {}
    others: dict[str, str] = {}
    for report in run.store.list("report"):
        stages = {**report.manifest.inputs, "report": report.fingerprint}
        name = report.manifest.options.get("name")
        if name == run.settings.name:
            own = stages
        else:
            others |= dict.fromkeys(stages.values(), str(name))
    return _Runs(own, others)


def _reasons(node: Node, earlier: list[Artifact], runs: _Runs) -> list[str]:
    if not earlier:
        return ["never ran under this root"]
    own = [artifact for artifact in earlier if artifact.fingerprint == runs.own.get(node.name)]
    candidates = own or [one for one in earlier if one.fingerprint not in runs.others] or earlier
    # The newest of the nearest: what a user changed last is what is asked about.
    nearest = min(reversed(candidates), key=lambda artifact: len(differences(artifact, node)))
    reasons = differences(nearest, node) or ["its artifact was deleted"]
    if own:
        return reasons
    name = runs.others.get(nearest.fingerprint)
    whose = "an unfinished run" if name is None else f"a run of another name, {name!r},"
    return [f"no run of this name is finished; {whose} of {nearest.manifest.created[:16]} is the nearest:", *reasons]


def differences(artifact: Artifact, node: Node) -> list[str]:
    """What a stage's draft changes against an artifact of the same stage, one reason a line, old → new."""
    manifest, draft = artifact.manifest, node.draft
    reasons = []
    if manifest.stage_version != draft.stage_version:
        reasons.append(f"stage version {manifest.stage_version} → {draft.stage_version}")
    old, new = dict(_flat(manifest.options)), dict(_flat(draft.options))
    reasons += [
        f"option {key}: {_shown(old, key)} → {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
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
            reasons.append(f"input {key}: {_short(before)} → {_short(after)}")
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
    if key not in values:
        return "(none)"
    text = repr(values[key])
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _short(fingerprint: str | None) -> str:
    return "(none)" if fingerprint is None else fingerprint[:12]


@dataclass(frozen=True)
class Rate:
    """A stage's cost: a fixed part and one per unit of work."""

    start: float
    """Seconds before the first unit: loading libraries and models."""
    seconds: float
    """Seconds per unit."""
    bytes: float
    """Bytes of the artifact per unit."""


DEFAULTS = {
    "scenes": Rate(0.5, 0.002, 15_500),
    "ingest": Rate(0.1, 0.00002, 50),
    "paraphrase_1": Rate(10, 0.07, 150),
    "paraphrase_2": Rate(10, 0.07, 190),
    "features": Rate(3, 0.016, 540),
    "bootstrap": Rate(5, 0.0012, 0.5),
    "finetune": Rate(8, 0.0037, 0.5),
    "control": Rate(8, 0.0013, 0.5),
    "evaluate": Rate(4, 0.0023, 75),
    "report": Rate(0.8, 0.0, 0.0),
}
"""Measured in a run of the demo on two quiet CPU cores. Units are those of :func:`paraclip.tasks.amounts.units_of`."""

OTHERS = Rate(5, 0.0, 0.0)


@dataclass(frozen=True)
class Cost:
    """An estimate and where it comes from."""

    seconds: float | None
    bytes: int | None
    basis: str


def estimate(stage: Stage, amount: Amount, earlier: Sequence[Artifact]) -> Cost:
    """Cost of a stage for this amount of work; `earlier` are its finished artifacts, oldest first."""
    rate = DEFAULTS.get(stage.name, OTHERS)
    fixed = FIXED_BYTES.get(stage.name, 0)
    if amount.units is None:
        return Cost(None, None, "unknown before the stages ahead of it are finished")
    scaled = _scaled(stage, amount, amount.units, earlier[-1]) if earlier else None
    if scaled is not None:
        return scaled
    written = amount.units if amount.rows is None or stage.name not in WRITES_ALL else amount.rows
    seconds, size = rate.start + rate.seconds * amount.units, fixed + rate.bytes * written
    return Cost(round(seconds, 1), int(size), "defaults for two CPU cores")


def _scaled(stage: Stage, amount: Amount, units: float, earlier: Artifact) -> Cost | None:
    manifest, rate = earlier.manifest, DEFAULTS.get(stage.name, OTHERS)
    basis = f"{manifest.stage}/{manifest.fingerprint[:12]}"
    before = units_of(stage, manifest.metrics)
    if before is None or before == units:
        # As much again, or nothing says how much it had to do: the same again is the best guess.
        return Cost(manifest.wall_seconds, manifest.size(), basis)
    if not before or units > MOST_GROWTH * before:
        return None
    # The start costs the same for any amount, so only what is above it grows.
    start, fixed = min(rate.start, manifest.wall_seconds), min(FIXED_BYTES.get(stage.name, 0), manifest.size())
    share = units / before
    seconds = start + (manifest.wall_seconds - start) * share
    rows = manifest.metrics.get(WRITES_ALL.get(stage.name, ""))
    written = amount.rows / rows if rows and amount.rows is not None else share
    return Cost(round(seconds, 1), int(fixed + (manifest.size() - fixed) * written), basis)
