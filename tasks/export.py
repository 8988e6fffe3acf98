"""A model written as a folder for another library, with a card of what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder
from paraclip_core.errors import ArtifactError

Layout = Literal["open_clip", "hf", "onnx"]
CARD = "README.md"
PLAIN_CARD = "---\nlibrary_name: open_clip\ntags:\n- clip\n- open_clip\n---\n\n# CLIP\n\nConverted from `{}`.\n"


def export_model(
    release: Path | str,
    folder: Path,
    layout: Layout = "open_clip",
    store: ArtifactStore | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a model in a layout; the target appears whole or not at all.

    Args:
        release: a release folder, or what else :func:`paraclip_core.clip.load.load_clip` takes.
        folder: where to.
        layout: open_clip's, Hugging Face's ``CLIPModel`` with its processor, or ONNX of the text tower.
        store: where the evaluation of a run's model is found.
        about: fields of the card's front matter: `language`, `datasets`, `license`.

    Returns:
        The names of its files.
    """
    with atomic_folder(folder) as draft:
        card = _card(release)
        if layout == "open_clip" and isinstance(release, Path) and (release / "open_clip_config.json").is_file():
            _copy(release, draft)
        else:
            _convert(release, draft, layout, card or PLAIN_CARD.format(release))
        if card is not None or about:
            written = card or (draft / CARD).read_text("utf-8")
            (draft / CARD).write_text(_completed(written, release, layout, store, about), "utf-8")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without its modes: an artifact may be read-only, and the copy is the user's own."""
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)


def _convert(release: Path | str, draft: Path, layout: Layout, card: str) -> None:
    # Here, because torch takes seconds to import and copying a folder does not need it.
    from paraclip_core.clip.export import save_hf, save_onnx, save_release
    from paraclip_core.clip.load import load_clip
    from paraclip_core.tensor_file import set_default_mode

    clip = load_clip(str(release))
    if layout == "open_clip":
        save_release(clip, draft, card)
        return
    {"hf": save_hf, "onnx": save_onnx}[layout](clip, draft)
    for weights in draft.rglob("*.safetensors"):
        set_default_mode(weights)
    (draft / CARD).write_text(card, "utf-8")


def _card(release: Path | str) -> str | None:
    path = Path(release) / CARD
    return path.read_text("utf-8") if isinstance(release, Path) and path.is_file() else None


def _completed(
    card: str, release: Path | str, layout: Layout, store: ArtifactStore | None, about: Mapping[str, Any] | None
) -> str:
    from paraclip_core.training.card import completed_card

    artifact = None if store is None or not isinstance(release, Path) else _artifact(release, store)
    if store is None or artifact is None:
        return completed_card(card, layout=layout, about=about)
    name = f"paraclip-{artifact.fingerprint[:8]}"
    return completed_card(card, layout=layout, name=name, comparison=_comparison(artifact, store), about=about)


def _artifact(release: Path, store: ArtifactStore) -> Artifact | None:
    folder = release.resolve().parent
    artifact = store.peek(folder.parent.name, folder.name)
    return artifact if artifact is not None and artifact.path.resolve() == folder else None


def _comparison(model: Artifact, store: ArtifactStore) -> dict[str, Any] | None:
    """The newest evaluation of a tuned model, None where there is none."""
    made = [each for each in store.list("evaluate") if each.manifest.inputs.get(model.stage) == model.fingerprint]
    if model.stage != "finetune" or not made:
        return None
    newest = store.download(max(made, key=lambda each: (each.manifest.created, each.fingerprint)))
    try:
        comparison = json.loads((newest.path / "comparison.json").read_text("utf-8"))
        return comparison if {"rows", "verdict", "reason", "confidence"} <= set(comparison) else None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the evaluation {newest.path} cannot be read: {error}") from error
