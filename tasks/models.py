"""Which base model a run repairs, and how the weights of local models are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from paraclip_core.clip.reference import check_reference, model_files
from paraclip_core.config import Settings
from paraclip_core.paraphrase.protocol import HashFiles
from storage.artifacts import Artifact
from storage.fingerprint import FileHashes
from storage.roots import open_store

__all__ = ["EMBEDDED", "base_inputs", "base_reference", "base_sources", "model_hashes", "reference_sources"]

EMBEDDED = "embedded"


def base_reference(settings: Settings, inputs: Mapping[str, Artifact]) -> str:
    """What `load_clip` takes to load the base: the bootstrapped release, or `model.base` as it is."""
    return str(inputs["bootstrap"].path / "release") if settings.model.base == EMBEDDED else settings.model.base


def base_inputs(settings: Settings) -> tuple[str, ...]:
    """The stages that make the base."""
    return ("bootstrap",) if settings.model.base == EMBEDDED else ()


def base_sources(settings: Settings, hashes: FileHashes) -> Mapping[str, str]:
    """Contents of a base that lies in local files, so that an edited one is another input.

    Raises:
        ModelError: the folder is not there, or open_clip has no such architecture.
    """
    if settings.model.base == EMBEDDED:
        return {}
    check_reference(settings.model.base)
    return reference_sources(settings.model.base, hashes)


def reference_sources(reference: str, hashes: FileHashes) -> Mapping[str, str]:
    """Contents of the local files that a reference means, by names that are the same wherever they lie."""
    files = model_files(reference)
    # An architecture's weights may have any name, which does not count.
    names = ["weights"] if len(files) == 1 else [path.name for path in files]
    return {f"base/{name}": value for name, value in zip(names, hashes.of(files).values(), strict=True)}


def model_hashes(settings: Settings) -> HashFiles:
    """Hashes of a language model's weights, which are read once for each root and change."""

    def of(files: Iterable[Path]) -> dict[str, str]:
        wanted = list(files)
        return FileHashes(open_store(settings.run.root).cache / "model_hashes.json").of(wanted) if wanted else {}

    return of
