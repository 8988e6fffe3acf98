"""Fine-tuning bases whose text encoders are not CLIP's: own tokens, short contexts, large vocabularies, end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.fingerprint import fingerprint
from paraclip.tasks.stages.training import FINETUNE
from paraclip.tasks.training.data import token_lists
from paraclip_core.clip.encode import encode_texts, tokenize
from paraclip_core.clip.export import save_hf, save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from tests.kit import encoders

RunStage = Callable[..., Artifact]
TEXTS = ["a red dog", "hound, red", "word " * 90]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ClipModel]:
    """A base of a kind, as a release folder."""

    def build(kind: str) -> ClipModel:
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "xlm-roberta":
            monkeypatch.setattr(encoders, "HF", {**encoders.HF, "vocab_size": 70_000})
        save_release(encoders.model_of(kind, folder), folder / "release", "card")
        return load_clip(str(folder / "release"))

    return build


def _features_of(clip: ClipModel, features: Artifact, store: ArtifactStore) -> Artifact:
    """The same features, which claim to come from this model's image encoder."""
    draft = Draft("features", fingerprint("features", 1, {"base": clip.reference}, {}), 1, {}, {})
    with store.writing("features", draft.fingerprint) as work:
        shutil.copytree(features.path, work.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        return store.commit(draft, {"image_encoder_hash": image_encoder_hash(clip)}, 0.0)


@pytest.mark.parametrize("kind", ["roberta", "coca", "siglip2"])
def test_it_is_tuned_and_released(
    kind: str,
    make: Callable[[str], ClipModel],
    run_stage: RunStage,
    sources: dict[str, Artifact],
    store: ArtifactStore,
    tmp_path: Path,
) -> None:
    base = make(kind)
    inputs = {**sources, "features": _features_of(base, sources["features"], store)}
    recipe = {"recipe": ("contrast",)} if kind == "siglip2" else {}
    artifact = run_stage(FINETUNE, inputs, model={"base": base.reference}, finetune=recipe)
    log = [json.loads(line) for line in (artifact.path / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    tried = json.loads((artifact.path / "candidates.json").read_text())
    alphas = tried["candidates"][0]["alphas"]
    best = max(point["ao@10"] for point in alphas)
    assert best >= alphas[0]["ao@10"] and tried["chosen"]["alpha"] in [point["alpha"] for point in alphas]
    tuned = load_clip(str(artifact.path / "release"))
    assert image_encoder_hash(tuned) == image_encoder_hash(base)
    assert artifact.manifest.metrics["rows"] > 80
    if kind == "roberta":
        again = run_stage(FINETUNE, inputs, model={"base": base.reference})
        assert again.manifest.files == artifact.manifest.files
    assert encode_texts(tuned, TEXTS).shape == (3, 32)
    for name in ("logit_bias", "text_decoder.text_projection"):
        if name in base.model.state_dict():
            assert torch.equal(tuned.model.state_dict()[name], base.model.state_dict()[name])
    card = (artifact.path / "release/README.md").read_text()
    assert ("pairwise sigmoid" in card) == base.sigmoid == (kind == "siglip2")
    if base.sigmoid:
        save_hf(tuned, tmp_path / "hf")
        tokens = AutoTokenizer.from_pretrained(tmp_path / "hf")(
            TEXTS, padding="max_length", truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            features: Any = AutoModel.from_pretrained(tmp_path / "hf").get_text_features(**tokens)
        queries = torch.nn.functional.normalize(features.pooler_output, dim=-1)
        np.testing.assert_allclose(queries.numpy(), encode_texts(tuned, TEXTS), atol=1e-5)


def test_texts_are_read_by_the_models_own_tokenizer(make: Callable[[str], ClipModel]) -> None:
    rows = pa.RecordBatch.from_pydict({"caption": TEXTS})
    short = token_lists(rows, ("caption",), make("clip-short"))["caption"]
    expected = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    np.testing.assert_array_equal(short.padded(16), expected.numpy())
    for kind, dtype in (("roberta", np.uint16), ("xlm-roberta", np.int32)):
        clip = make(kind)
        tokens, of_model = token_lists(rows, ("caption",), clip)["caption"], tokenize(clip, TEXTS)
        assert tokens.values.dtype == clip.token_dtype == dtype
        np.testing.assert_array_equal(tokens.values, of_model.values)
        np.testing.assert_array_equal(tokens.offsets, of_model.offsets)
