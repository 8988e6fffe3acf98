"""Which base model a run repairs."""

from __future__ import annotations

from collections.abc import Mapping

from paraclip_core.clip.reference import local_folder, model_files
from paraclip_core.config import Settings
from storage.artifacts import Artifact
from storage.fingerprint import FileHashes

__all__ = ["EMBEDDED", "base_inputs", "base_reference", "base_sources"]

EMBEDDED = "embedded"


def base_reference(settings: Settings, inputs: Mapping[str, Artifact]) -> str:
    """What `load_clip` takes to load the base: the bootstrapped release, or `model.base` as it is."""
    return str(inputs["bootstrap"].path / "release") if settings.model.base == EMBEDDED else settings.model.base


def base_inputs(settings: Settings) -> tuple[str, ...]:
    """The stages that make the base."""
    return ("bootstrap",) if settings.model.base == EMBEDDED else ()


def base_sources(settings: Settings, hashes: FileHashes) -> Mapping[str, str]:
    """Contents of a base that lies in a local folder, so that an edited one is another input."""
    folder = None if settings.model.base == EMBEDDED else local_folder(settings.model.base)
    if folder is None:
        return {}
    files = model_files(folder)
    return {f"base/{path.name}": value for path, value in zip(files, hashes.of(files).values(), strict=True)}
