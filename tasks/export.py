"""A model written as a folder for another library, or as a delta to its base, with a card of what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paraclip_core.errors import ArtifactError, ConfigError
from storage.artifacts import Artifact, ArtifactStore
from storage.files import atomic_folder
from tasks.models import base_of

if TYPE_CHECKING:
    from paraclip_core.clip.model import ClipModel

__all__ = ["Layout", "apply_to_base", "export_model", "in_words", "measured"]

Layout = Literal["open_clip", "hf", "onnx", "sentence-transformers", "immich", "onnx-int8", "delta"]
CARD = "README.md"
CLIP_CONTEXT = 77
MEASURED_TEXTS = 200
PLAIN_CARD = "---\nlibrary_name: open_clip\ntags:\n- clip\n- open_clip\n---\n\n# CLIP\n\nConverted from `{}`.\n"


def export_model(
    release: Path | str,
    folder: Path,
    layout: Layout = "open_clip",
    store: ArtifactStore | None = None,
    about: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> list[str]:
    """Write a model in a layout; the target appears whole or not at all.

    Args:
        release: a release folder, or what else :func:`paraclip_core.clip.load.load_clip` takes.
        folder: where to.
        layout: open_clip's, Hugging Face's ``CLIPModel`` with its processor, ONNX of the text tower,
            sentence-transformers', Immich's, the text tower's ONNX in int8, or its difference from the base.
        store: where the training's log and the evaluation of a run's model are found.
        about: fields of the card's front matter: `language`, `datasets`, `license`.
        base: the model that a delta is to be added to; by default what a run's model was tuned from.

    Returns:
        The names of its files.

    Raises:
        ModelError: the model cannot be loaded, the layout has no such architecture, or int8 loses too much.
        ConfigError: the target holds something already, or a delta has no base.
        ArtifactError: the target cannot be written.
    """
    with atomic_folder(folder) as draft:
        card = _card(release)
        if layout == "open_clip" and isinstance(release, Path) and (release / "open_clip_config.json").is_file():
            _copy(release, draft)
        else:
            _convert(release, draft, layout, card or PLAIN_CARD.format(release), store, base)
        if card is not None or about:
            written = card or (draft / CARD).read_text("utf-8")
            (draft / CARD).write_text(_completed(written, release, draft, layout, store, about), "utf-8")
        if figures := measured(draft, layout):
            with (draft / CARD).open("a", encoding="utf-8") as file:
                file.write(_section(figures))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without its modes: an artifact may be read-only, and the copy is the user's own."""
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)


def _convert(
    release: Path | str, draft: Path, layout: Layout, card: str, store: ArtifactStore | None, base: str | None
) -> None:
    # Here, because torch takes seconds to import and copying a folder does not need it.
    from paraclip_core.clip.export import save_hf, save_release, save_sentence_transformers
    from paraclip_core.clip.load import load_clip
    from paraclip_core.clip.onnx import save_immich, save_onnx
    from paraclip_core.tensor_file import set_default_mode

    if layout == "delta":
        _write_delta(release, draft, store, base)
    elif layout == "open_clip":
        save_release(load_clip(str(release)), draft, card)
        return
    elif layout == "onnx-int8":
        _write_int8(load_clip(str(release)), release, draft, store)
    else:
        writers = {"hf": save_hf, "onnx": save_onnx, "sentence-transformers": save_sentence_transformers}
        (writers | {"immich": save_immich})[layout](load_clip(str(release)), draft)
    for weights in draft.rglob("*.safetensors"):
        set_default_mode(weights)
    (draft / CARD).write_text(card, "utf-8")


def _write_delta(release: Path | str, draft: Path, store: ArtifactStore | None, base: str | None) -> None:
    from paraclip_core.clip.delta import DELTA_FILE, save_delta
    from paraclip_core.clip.load import load_clip

    base = base or (None if store is None else base_of(str(release), store))
    if base is None:
        raise ConfigError(f"no run under this root tuned {release}; say with --base which model it was tuned from")
    save_delta(load_clip(base), load_clip(str(release)), draft / DELTA_FILE)


def _write_int8(clip: ClipModel, release: Path | str, draft: Path, store: ArtifactStore | None) -> None:
    from paraclip_core.clip.int8 import EVERYDAY, need_onnxruntime, quantize_onnx
    from paraclip_core.clip.onnx import save_onnx
    from paraclip_core.clip.search import Searcher
    from storage.features import FeatureStore
    from storage.parquet import iter_batches

    need_onnxruntime()
    save_onnx(clip, draft)
    artifact = None if store is None or not isinstance(release, Path) else _artifact(release, store)
    inputs = {} if artifact is None else artifact.manifest.inputs
    stages = [stage for stage in ("ingest", "features") if stage in inputs]
    artifacts = {stage: store.find(stage, inputs[stage]) for stage in stages if store}
    texts, images = list(EVERYDAY), None
    if (ingest := artifacts.get("ingest")) is not None:
        # The first batch is enough, and fits in memory whatever the number of captions.
        batch = next(iter_batches(ingest.path / "captions", ["caption"]), None)
        captions = [] if batch is None else batch.column("caption").to_pylist()
        texts = captions[:: max(1, len(captions) // MEASURED_TEXTS)][:MEASURED_TEXTS] or texts
    if (features := artifacts.get("features")) is not None:
        stored = FeatureStore(features.path)
        images = Searcher(stored.view(), stored.image_ids)
        images.check(clip)
    quantize_onnx(clip, draft, texts, images)


def measured(folder: Path, layout: Layout) -> dict[str, Any]:
    """What an export in int8 (`int8`) or as a delta (`delta`) says of its size and error; empty for other layouts.

    Raises:
        ModelError: the delta is damaged.
    """
    if layout == "delta":
        from paraclip_core.clip.delta import DELTA_FILE, delta_facts

        path = folder / DELTA_FILE
        facts = {name: value for name, value in vars(delta_facts(path)).items() if name != "factors"}
        return {"delta": {"bytes": path.stat().st_size, **facts}}
    if layout == "onnx-int8":
        from paraclip_core.clip.onnx import ONNX_TEXTS

        return {"int8": json.loads((folder / ONNX_TEXTS).read_text("utf-8"))["int8"]}
    return {}


def _section(figures: Mapping[str, Any]) -> str:
    """The card's section on what int8 costs."""
    return "".join(f"\n## {name.capitalize()}\n\n{in_words(figures)}\n" for name in figures)


def in_words(figures: Mapping[str, Any]) -> str:
    """The figures of :func:`measured` in a sentence; empty where there are none."""
    if (loss := figures.get("int8")) is not None:
        same = loss["same_of_ten"]
        ranks = "" if same is None else f"; of the ten nearest images {100 * same:.1f} % are the same"
        return (
            f"int8 text tower, {loss['bytes'] / 1e6:.1f} MB (fp32: {loss['fp32_bytes'] / 1e6:.1f} MB). Cosine to the "
            f"fp32 tower over {loss['texts']} texts: mean {loss['mean_cosine']:.4f}, least {loss['least_cosine']:.4f}"
            f"{ranks}."
        )
    if (facts := figures.get("delta")) is not None:
        return (
            f"The text tower as int8 changes to the base with weights `{facts['base_weights']}`, "
            f"{facts['bytes'] / 1e6:.1f} MB. No weight is further than {facts['largest_error']:.2g} from the tuned "
            f"model's; all errors together have {100 * facts['relative_error']:.2g} % of the change's length. Image "
            f"tower: `{facts['image_tower']}`, as the base's."
        )
    return ""


def apply_to_base(base: Path | str, delta: Path, folder: Path) -> list[str]:
    """Write base and delta together as a release folder, which appears whole or not at all.

    Args:
        base: the model that was tuned, as for :func:`export_model`.
        delta: the file, or the folder with it and its card.
        folder: where to.

    Returns:
        The names of its files.

    Raises:
        ModelError: the base is another one, or the file is damaged or no delta.
        ConfigError: the target holds something already.
        ArtifactError: the target cannot be written.
    """
    from paraclip_core.clip.delta import DELTA_FILE, apply_delta
    from paraclip_core.clip.export import save_release
    from paraclip_core.clip.load import load_clip
    from paraclip_core.training.card import completed_card

    file = delta / DELTA_FILE if delta.is_dir() else delta
    stored = file.with_name(CARD)
    with atomic_folder(folder) as draft:
        clip = load_clip(str(base))
        apply_delta(clip, file)
        card = stored.read_text("utf-8") if stored.is_file() and file.name == DELTA_FILE else PLAIN_CARD.format(base)
        save_release(clip, draft, completed_card(card))
    return sorted(path.name for path in folder.iterdir())


def _card(release: Path | str) -> str | None:
    path = Path(release) / CARD
    return path.read_text("utf-8") if isinstance(release, Path) and path.is_file() else None


def _completed(
    card: str,
    release: Path | str,
    draft: Path,
    layout: Layout,
    store: ArtifactStore | None,
    about: Mapping[str, Any] | None,
) -> str:
    from paraclip_core.training.card import completed_card

    layout = "onnx" if layout == "onnx-int8" else layout
    own = layout == "onnx" and _has_own_tokens(draft)
    artifact = None if store is None or not isinstance(release, Path) else _artifact(release, store)
    if store is None or artifact is None:
        return completed_card(card, layout=layout, own_tokens=own, about=about)
    return completed_card(
        card,
        layout=layout,
        own_tokens=own,
        name=f"paraclip-{artifact.fingerprint[:8]}",
        comparison=_comparison(artifact, store),
        log=_log(artifact.path / "training_log.jsonl"),
        about=about,
    )


def _has_own_tokens(draft: Path) -> bool:
    from paraclip_core.clip.onnx import CLIP_TOKENS, ONNX_TEXTS

    facts = json.loads((draft / ONNX_TEXTS).read_text("utf-8"))
    return facts["tokenizer"] != CLIP_TOKENS or facts["context_length"] != CLIP_CONTEXT


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


def _log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
