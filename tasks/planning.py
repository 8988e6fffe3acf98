"""What a run would do before it does anything: cached, resumable or to run, why, and what it would cost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ParaclipError
from paraclip_core.paraphrase.engines import make_engine, relevant_options
from paraclip_core.paraphrase.protocol import CheckedEngine
from storage.artifacts import Artifact, ArtifactStore
from storage.files import storage_error
from storage.manifests import SOURCE
from tasks.amounts import Amount, amounts
from tasks.dag import STAGES, Node, resolve
from tasks.estimates import estimate
from tasks.models import model_hashes
from tasks.stage import Stage
from tasks.stages.paraphrase import chosen_gates

__all__ = ["StagePlan", "differences", "plan_notes", "plan_run"]

State = Literal["cached", "resumable", "to run", "damaged"]
Count = Callable[[Settings, ArtifactStore, Mapping[str, Artifact]], Mapping[str, Amount]]
SHOWN = 60


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


def plan_run(
    settings: Settings, store: ArtifactStore, stages: Mapping[str, Stage] = STAGES, count: Count = amounts
) -> list[StagePlan]:
    """One entry per stage, in order; nothing is written but the hashes of source files and the cache's index.

    Raises:
        InputError: a source file is missing.
        ConfigError: options contradict each other.
        ArtifactError: there is no root, and none can be made there. One that can only be read may be planned.
    """
    _expect_root(store.root)
    nodes = resolve(settings, store, stages)
    found: dict[str, Artifact] = {}
    damaged: dict[str, str] = {}
    for name, node in nodes.items():
        try:
            artifact = store.peek(name, node.fingerprint)
        except ArtifactError as error:
            damaged[name] = str(error)
            continue
        if artifact is not None:
            found[name] = artifact
    sizes = count(settings, store, found)
    return [_plan(node, store, found, damaged.get(name), sizes.get(name, Amount())) for name, node in nodes.items()]


def plan_notes(settings: Settings, requests: int) -> list[str]:
    """What else to know before a run that makes so many requests: the gates, and whether the engine can be asked."""
    options = relevant_options(settings.paraphrase)
    engine = make_engine(options, settings.data.root, settings.run.device, model_hashes(settings))
    preset, chosen = chosen_gates(options).preset, options.gates.preset
    why = f"suits the engine {options.engine}" if chosen == "auto" else "as set"
    notes = [f"gates: {preset} ({why}; docs/gates.md)"]
    if requests and isinstance(engine, CheckedEngine):
        with closing(engine):
            try:
                engine.check()
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
    node: Node,
    store: ArtifactStore,
    found: Mapping[str, Artifact],
    damage: str | None,
    amount: Amount,
) -> StagePlan:
    name = node.name
    if name in found:
        manifest = found[name].manifest
        return StagePlan(name, node.fingerprint, "cached", (), amount.rows, 0, 0, 0.0, manifest.size(), "its manifest")
    state: State = "resumable" if store.resumable(name, node.fingerprint) else "to run"
    earlier = store.list(name)
    why = (damage,) if damage else tuple(_reasons(node, earlier))
    # Another engine is another speed.
    alike = [a for a in earlier if a.manifest.options.get("engine") == node.draft.options.get("engine")]
    cost = estimate(name, amount, alike)
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


def _reasons(node: Node, earlier: list[Artifact]) -> list[str]:
    if not earlier:
        return ["never ran under this root"]
    # The newest of the nearest: what a user changed last is what is asked about.
    candidates = [differences(artifact, node) for artifact in reversed(earlier)]
    return min(candidates, key=len) or ["its artifact was deleted"]


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
