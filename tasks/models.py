"""Resolves a user's name for a model to its release folder, its base and the image index that stays valid for both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paraclip.storage.artifacts import Artifact, ArtifactStore, sources_of
from paraclip.storage.fingerprint import FileHashes
from paraclip.tasks.corpus import corpus_of
from paraclip_core.clip.options import BUILT_IN as BUILT_IN
from paraclip_core.clip.reference import (
    canonical,
    check_reference,
    has_logit_bias,
    is_model_folder,
    local_file,
    model_files,
)
from paraclip_core.config import Settings
from paraclip_core.errors import UnknownModelError, UnknownNameError
from paraclip_core.paths import expand
from paraclip_core.training.options import CONTROL_RECIPES, RECIPES

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run
    from paraclip_core.training.options import BaseKind, Candidate

MODEL_STAGES = ("finetune", "built_in_base")
RELEASE = "release"
BASE_HELD_OUT = 0.1
"""Minimum share of the training images that the built-in base does not see."""


def base_reference(settings: Settings, inputs: Mapping[str, Artifact]) -> str:
    """The reference with which `load_clip` loads the base: the built-in base's release, or `model.base` unchanged."""
    return str(inputs["built_in_base"].path / "release") if settings.model.base == BUILT_IN else settings.model.base


def base_inputs(settings: Settings) -> tuple[str, ...]:
    """The stages that produce the base."""
    return ("built_in_base",) if settings.model.base == BUILT_IN else ()


def base_held_out(settings: Settings) -> float:
    """Share of the training images that the built-in base does not see, because fine-tuning chooses on some of them: a
    base has learned its training images, and beats any tuned encoder there."""
    return max(BASE_HELD_OUT, settings.finetune.validation)


def base_kind(base: str) -> BaseKind:
    """The kind of a `model.base`, which decides the learning rates to try; a base of unknown loss counts as CLIP."""
    if base == BUILT_IN:
        return "built-in"
    return "siglip" if has_logit_bias(base) else "clip"


def of_control(settings: Settings) -> Settings:
    """The caption-only control of a run: on captions only, with recipes that suit them besides the run's own."""
    corpus, options = corpus_of(settings), settings.finetune
    suits = [name for name in CONTROL_RECIPES if corpus.retention is None or RECIPES[name].losses.suits_log]
    recipes = tuple(dict.fromkeys((*options.recipes(corpus.recipes), *suits)))
    return settings.model_copy(update={"finetune": options.model_copy(update={"texts": "captions", "recipe": recipes})})


def candidates_of(settings: Settings) -> tuple[Candidate, ...]:
    """The recipes and learning rates that fine-tuning tries."""
    return settings.finetune.candidates(base_kind(settings.model.base), corpus_of(settings).recipes)


def base_sources(run: Run) -> Mapping[str, str]:
    """Content hashes of a base in local files, so that an edited base is a different input."""
    base = run.settings.model.base
    if base == BUILT_IN:
        return {}
    check_reference(base)
    return reference_sources(base, run.hashes)


def reference_sources(reference: str, hashes: FileHashes) -> Mapping[str, str]:
    """Content hashes of a reference's local files, by names that do not depend on their location."""
    files = model_files(reference)
    # The weights of an architecture may have any file name, which does not matter.
    names = ["weights"] if len(files) == 1 else [path.name for path in files]
    return {f"base/{name}": value for name, value in zip(names, hashes.of(files).values(), strict=True)}


def find_tuned(name: str, store: ArtifactStore, base: str | None = None) -> tuple[Artifact, str]:
    """The tuned model named by a channel, the start of a fingerprint or an artifact's folder, and its base's reference.

    The base was made by a stage, or has the same contents as when the model was tuned; `base` gives its location if it
    has moved.
    """
    artifact = _artifact(name, store, ("finetune",))
    manifest = artifact.manifest
    if fingerprint := manifest.inputs.get("built_in_base"):
        return artifact, str(store.expect("built_in_base", fingerprint, f"the base of {name!r}").path / RELEASE)
    base = str(base or manifest.metrics.get("base") or manifest.options.get("base", ""))
    if then := sources_of(manifest.inputs):
        missing = next((path for path in model_files(base) if not path.exists()), None)
        if missing is not None:
            raise UnknownModelError(f"the base of {name!r} has no {missing}; give its location with --base")
        if reference_sources(base, FileHashes(store.cache / "source_hashes.json")) != then:
            raise UnknownModelError(
                f"{base} is not the model that {name!r} was tuned from; give that model's location with --base"
            )
    return artifact, base


def of_own_base(evaluation: Artifact, tuned: Artifact) -> bool:
    """Whether an evaluation compares this tuned model with the base that it was tuned from."""
    measured, made_from = evaluation.manifest.inputs, tuned.manifest.inputs
    return measured.get("finetune") == tuned.fingerprint and measured.get("built_in_base") == made_from.get(
        "built_in_base"
    )


def find_release(name: str, store: ArtifactStore) -> Path | str:
    """The release folder of a channel, artifact or folder; a reference that open_clip knows is returned unchanged."""
    name = canonical(name)
    if (file := local_file(name)) is not None and not file[1].exists():
        raise UnknownModelError(f"model {name!r}: {file[1]} does not exist")
    if name.startswith("hf-hub:") or file is not None or re.fullmatch(r"[\w.-]+:[\w.-]+", name):
        check_reference(name)
        return name
    if name in store.channels():
        # Before a folder of that name, which may be an earlier export of the channel.
        return _artifact(name, store, MODEL_STAGES).path / RELEASE
    path = expand(name.removeprefix("local-dir:"))
    if path.is_file():
        return name
    for folder in (path / RELEASE, path):
        if is_model_folder(folder):
            return folder
    return _artifact(name, store, MODEL_STAGES).path / RELEASE


def judgment(name: str, store: ArtifactStore) -> tuple[str | None, Path | None]:
    """Verdict and reason on a channel's model, and the report of its run; None for whatever is missing."""
    channel = (store.channel(name) if name in store.channels() else None) or {}
    fingerprint = channel.get("stages", {}).get("report")
    report = None if fingerprint is None else store.find("report", fingerprint)
    verdict = ": ".join(filter(None, (channel.get("verdict"), channel.get("reason"))))
    return verdict or None, None if report is None else report.path / "report.html"


def name_in(store: ArtifactStore, release: Path | str) -> str:
    """``STAGE/FINGERPRINT`` of an artifact's release folder; other references are returned unchanged."""
    folder = Path(release).parent
    if Path(release).name == RELEASE and folder.parent.parent == store.root / "artifacts":
        return f"{folder.parent.name}/{folder.name}"
    return str(release)


def _artifact(name: str, store: ArtifactStore, stages: tuple[str, ...]) -> Artifact:
    """The artifact, of one of `stages`, that its folder, a channel or the start of a fingerprint names."""
    folder = expand(name).resolve()
    folder = folder.parent if folder.name == RELEASE else folder
    artifact = store.find(folder.parent.name, folder.name) if folder.is_dir() else None
    if artifact is None or artifact.path.resolve() != folder:
        try:
            # A folder of data may have the name of the run that was tuned on it.
            artifact = store.download(store.named(name, stages))
        except UnknownNameError as error:
            if not folder.is_dir():
                raise
            raise UnknownNameError(
                f"{folder} holds no open_clip_config.json and is not an artifact under {store.root}; give a release "
                "folder, or --root with a model's channel or fingerprint"
            ) from error
    if artifact.stage not in stages:
        raise UnknownNameError(f"{name!r} is a {artifact.stage} artifact; expected {' or '.join(stages)}")
    return artifact
