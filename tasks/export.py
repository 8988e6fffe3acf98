"""Export of a model for another library, with its evaluation in the card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder, read_json
from paraclip.tasks.models import of_own_base
from paraclip_core.evaluation.churn import Churn
from paraclip_core.training.card import completed_card

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
    """Write a model in a layout and return the names of its files; the target is written atomically.

    `release` is a release folder or another reference that :func:`paraclip_core.clip.load.load_clip` accepts. The
    evaluation of a run's model is looked up in `store`; `about` has fields of the card's front matter: `language`,
    `datasets`, `license`.
    """
    with atomic_folder(folder) as draft:
        path = Path(release) / CARD
        card = path.read_text("utf-8") if isinstance(release, Path) and path.is_file() else None
        if layout == "open_clip" and isinstance(release, Path) and (release / "open_clip_config.json").is_file():
            _copy(release, draft)
        else:
            _convert(release, draft, layout, card or PLAIN_CARD.format(release))
        if card is not None or about:
            written = card or (draft / CARD).read_text("utf-8")
            (draft / CARD).write_text(_completed(written, release, layout, store, about), "utf-8")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without its file modes: an artifact may be read-only, and the copy belongs to the user."""
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)


def _convert(release: Path | str, draft: Path, layout: Layout, card: str) -> None:
    # Imported here: torch takes seconds to import, and copying a folder does not need it.
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


def _completed(
    card: str, release: Path | str, layout: Layout, store: ArtifactStore | None, about: Mapping[str, Any] | None
) -> str:
    if store is not None and isinstance(release, Path):
        folder = release.resolve().parent
        artifact = store.peek(folder.parent.name, folder.name)
        if artifact is not None and artifact.path.resolve() == folder:
            name = f"paraclip-{artifact.fingerprint[:8]}"
            comparison, churn = _evaluated(artifact, store)
            return completed_card(card, layout=layout, name=name, comparison=comparison, churn=churn, about=about)
    return completed_card(card, layout=layout, about=about)


def _evaluated(model: Artifact, store: ArtifactStore) -> tuple[dict[str, Any] | None, Churn | None]:
    """Comparison and churn of the newest evaluation of a tuned model against its own base; None for what is missing."""
    evaluations = [artifact for artifact in store.list("evaluate") if of_own_base(artifact, model)]
    if model.stage != "finetune" or not evaluations:
        return None, None
    newest = store.download(max(evaluations, key=lambda artifact: (artifact.manifest.created, artifact.fingerprint)))
    comparison = read_json(newest.path / "comparison.json")
    if not {"rows", "verdict", "reason", "confidence"} <= set(comparison):
        return None, None
    changes = newest.path / "churn.json"
    return comparison, Churn.from_json(read_json(changes)) if changes.exists() else None
