"""What a model reference means, told without importing torch: planning a run must stay quick."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIG", "HUB", "IMAGE_WEIGHTS", "LOCAL", "WEIGHTS", "local_folder", "model_files"]

LOCAL, HUB = "local-dir:", "hf-hub:"

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""Names of a release folder's weights, best first."""

IMAGE_WEIGHTS = "efficientnet-lite0-57934424"
"""Names the embedded model's image trunk; part of the fingerprint of what is computed with it."""


def local_folder(reference: str) -> Path | None:
    """The folder that a reference means, None where it means a model from elsewhere."""
    if reference.startswith(LOCAL):
        return Path(reference.removeprefix(LOCAL)).expanduser()
    if reference.startswith(HUB):
        return None
    return Path(reference).expanduser() if ":" not in reference or Path(reference).is_dir() else None


def model_files(folder: Path) -> list[Path]:
    """The files of a release folder that say what the model is; those that are missing are listed all the same."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    return [folder / CONFIG, weights]
