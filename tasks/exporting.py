"""A model's release folder, copied out of the store."""

from __future__ import annotations

import shutil
from pathlib import Path

from paraclip_core.errors import ConfigError, ModelError
from storage.atomic import storage_error

__all__ = ["export_release"]


def export_release(release: Path | str, folder: Path) -> list[str]:
    """Copy a release folder; the target appears whole or not at all.

    Returns:
        The names of its files.

    Raises:
        ModelError: the model is no folder.
        ConfigError: the target holds something already.
        ArtifactError: the target cannot be written.
    """
    if isinstance(release, str):
        raise ModelError(f"{release} is not a local model; only a run's model or a folder can be exported")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose a new folder")
    folder = folder.absolute()
    draft = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(release, draft)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise storage_error(error, folder) from error
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
