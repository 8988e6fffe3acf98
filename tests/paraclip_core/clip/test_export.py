"""Models written for other libraries, loaded back by those libraries themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from paraclip_core.clip.encode import encode_images, encode_texts, image_transform, model_tokenizer
from paraclip_core.clip.export import ONNX_FILE, ONNX_TEXTS, save_hf, save_onnx, save_release
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.load import embedded_clip, load_clip
from paraclip_core.clip.model import ClipModel, image_tower_hash, preprocess_hash
from paraclip_core.config import ModelOptions
from paraclip_core.errors import ModelError

Tiny = Callable[..., ClipModel]
TEXTS = ["a dog on a beach", "two men & a boat, 3 o'clock", "A", "word " * 100, "naïve café ❤ photo"]


SMALL = ModelOptions(text_width=64, text_layers=2, embed_dim=32)
WEIGHTS = "open_clip_model.safetensors"


def _picture(width: int, height: int) -> Image.Image:
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("extra", [{"quick_gelu": True}, {"custom_text": True}])
def test_transformers_loads_a_clip_model(extra: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    clip = tiny(**extra)
    save_hf(clip, tmp_path)
    model: Any = CLIPModel.from_pretrained(tmp_path)
    processor: Any = CLIPProcessor.from_pretrained(tmp_path)
    images = [_picture(50, 40), _picture(32, 90)]
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True)
    assert torch.equal(inputs["input_ids"][0, :7], model_tokenizer(clip)(TEXTS)[0, :7])
    # The processor's own scaling rounds grey levels.
    own = torch.stack([image_transform(clip)(image) for image in images])
    assert (inputs["pixel_values"] - own).abs().max() < 0.05
    inputs["pixel_values"] = own
    with torch.no_grad():
        output = model(**inputs)
        expected = F.normalize(clip.model.encode_image(own), dim=-1)  # type: ignore[operator]
    np.testing.assert_allclose(output.text_embeds.numpy(), encode_texts(clip, TEXTS), atol=1e-5)
    torch.testing.assert_close(output.image_embeds, expected, atol=1e-5, rtol=0)
    assert model.logit_scale == clip.model.logit_scale


def test_sentence_transformers_loads_a_model(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    clip = tiny(quick_gelu=True)
    save_hf(clip, tmp_path / "my-hf")
    monkeypatch.chdir(tmp_path)
    exec(recipe("sentence-transformers"), {})
    model = library.SentenceTransformer("my-sentence-transformer", device="cpu")
    texts = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(texts, encode_texts(clip, TEXTS), atol=1e-5)
    picture = _picture(32, 32)
    images = model.encode([picture], normalize_embeddings=True)
    np.testing.assert_allclose(images, encode_images(clip, [picture]).astype(np.float32), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["roberta", *(pytest.param(k, marks=pytest.mark.nightly) for k in ("clip-quickgelu", "siglip"))]
)
def test_onnxruntime_runs_the_text_tower(kind: str, towers: Any, tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    import onnxruntime

    clip = towers.model_of(kind, tmp_path)
    save_onnx(clip, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / ONNX_FILE)
    facts = json.loads((tmp_path / "onnx" / ONNX_TEXTS).read_text())
    expected = encode_texts(clip, towers.TEXTS)
    ids = model_tokenizer(clip)(towers.TEXTS).numpy()
    assert np.abs(session.run(None, {"input_ids": ids})[0] - expected).max() <= 1e-5
    # One text alone, cut to what the facts say that it needs.
    length = int((ids[1] != facts["pad_token_id"]).sum())
    if kind == "siglip":
        length = facts["shortest_length"]
    alone = session.run(None, {"input_ids": ids[1:2, :length]})[0]
    assert np.abs(alone - expected[1:2]).max() <= 1e-5
    assert (tmp_path / "onnx" / "tokenizer.json").is_file() == (kind in ("roberta", "siglip"))


def test_onnx_without_its_packages(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paraclip_core.clip.export.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"onnx and onnxscript; run: pip install 'paraclip\[export\]'"):
        save_onnx(tiny(), tmp_path)


def test_what_clip_model_does_not_have_is_refused(tiny: Tiny, towers: Any, tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    longest = tiny()
    longest.preprocess_cfg["resize_mode"] = "longest"
    cases = [embedded_clip(SMALL), tiny({"no_causal_mask": True}, custom_text=True), longest]
    cases += [tiny(vision_cfg={**vision, "no_ln_pre": True})]
    cases += [towers.model_of(kind, tmp_path) for kind in ("roberta", "siglip", "coca")]
    for clip in cases:
        with pytest.raises(ModelError, match="export it as open_clip"):
            save_hf(clip, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["embedded", "quick-gelu", "custom-text"])
def test_stock_open_clip_loads_a_release(tiny: Tiny, kind: str, tmp_path: Path, data_root: Path) -> None:
    clip = embedded_clip(SMALL) if kind == "embedded" else tiny(**{kind.replace("-", "_"): True})
    for name in ("a", "b"):
        save_release(clip, tmp_path / name, "# A card\n")
    with ImageArchive(data_root / "flickr8k/images_128.tar") as archive:
        images = [archive.open(name) for name in archive.names()[:3]]

    parts: Any = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'a'}")
    model, _, preprocess = parts
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'a'}")
    model.eval()
    with torch.no_grad():
        texts = F.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1).numpy()
        pixels = F.normalize(model.encode_image(torch.stack([preprocess(i) for i in images])), dim=-1).numpy()
    np.testing.assert_allclose(texts, encode_texts(clip, TEXTS), atol=1e-5)
    np.testing.assert_allclose(pixels, encode_images(clip, images).astype(np.float32), atol=1e-3)

    loaded = load_clip(f"local-dir:{tmp_path / 'a'}")
    assert image_tower_hash(loaded) == image_tower_hash(clip)
    assert preprocess_hash(loaded) == preprocess_hash(clip)
    assert loaded.model_cfg == clip.model_cfg and not loaded.model.training
    np.testing.assert_array_equal(encode_texts(loaded, TEXTS), encode_texts(clip, TEXTS))
    save_release(loaded, tmp_path / "c", "# A card\n")
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b", "c")]
    assert made[0] == made[1] == made[2] and set(made[0]) == {"README.md", "open_clip_config.json", WEIGHTS}


def test_weights_that_are_not_finite_are_not_released(tiny: Tiny, tmp_path: Path) -> None:
    clip = tiny()
    with torch.no_grad():
        clip.model.get_parameter("ln_final.weight")[0] = float("inf")
    with pytest.raises(ModelError, match=r"ln_final\.weight"):
        save_release(clip, tmp_path / "m", "card")
    assert not (tmp_path / "m" / WEIGHTS).exists()


def recipe(heading: str) -> str:
    """The Python of a section of docs/tuned-model.md."""
    section = (Path(__file__).parents[3] / "docs/tuned-model.md").read_text("utf-8").partition(f"## {heading}\n")[2]
    return section.partition("```python\n")[2].partition("```")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["quick-gelu", *(pytest.param(k, marks=pytest.mark.nightly) for k in ("embedded", "siglip", "roberta"))]
)
def test_recipes_give_the_models_queries(
    kind: str, towers: Any, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    import onnxruntime

    models = {"quick-gelu": lambda: tiny(quick_gelu=True), "embedded": lambda: embedded_clip(SMALL)}
    clip = models.get(kind, lambda: towers.model_of(kind, tmp_path))()
    save_release(clip, tmp_path / "my-model", "card")
    save_onnx(clip, tmp_path / "my-onnx")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        exec(recipe("Immich"), {})
    exec(recipe("The text tower in int8"), {})
    texts = ["a photo of a dog", "Two men on a boat", "a long caption, " * (1 if kind == "siglip" else 60)]
    rows = [row[None] for row in model_tokenizer(clip)(texts).numpy()]
    immich: Any = onnxruntime.InferenceSession("model.onnx")
    vectors = np.concatenate([immich.run(None, {"text": row.astype(np.int32)})[0] for row in rows])
    expected = encode_texts(clip, texts).astype(np.float32)
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    int8: Any = onnxruntime.InferenceSession("my-onnx/text_model_int8.onnx")
    rough = np.concatenate([int8.run(None, {"input_ids": row})[0] for row in rows])
    assert (rough * expected).sum(axis=1).mean() > 0.98 and not np.array_equal(rough, vectors)
