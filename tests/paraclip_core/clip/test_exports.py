"""Models written for other libraries, loaded back by those libraries themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.embedded import embedded_clip
from paraclip_core.clip.encode import encode_images, encode_texts, image_transform
from paraclip_core.clip.hf_export import hf_obstacle, save_hf, save_sentence_transformers
from paraclip_core.clip.identity import image_tower_hash
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.onnx_export import ONNX_FILE, ONNX_TEXTS, save_onnx
from paraclip_core.clip.tokenizer import model_tokenizer
from paraclip_core.config import ModelOptions
from paraclip_core.errors import ModelError

Tiny = Callable[..., ClipModel]
TEXTS = ["a dog on a beach", "two men & a boat, 3 o'clock", "A", "word " * 100, "naïve café ❤ photo"]


def _picture(width: int, height: int) -> Image.Image:
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(values.astype(np.uint8))


def test_nothing_is_drawn_while_it_is_written(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils.logging import enable_progress_bar

    enable_progress_bar()
    save_hf(tiny(), tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extra", [{}, {"quick_gelu": True}, {"custom_text": True}])
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

    again = load_clip(str(tmp_path))
    assert image_tower_hash(again) == image_tower_hash(clip) and again.preprocess_cfg == clip.preprocess_cfg
    np.testing.assert_array_equal(encode_texts(again, TEXTS), encode_texts(clip, TEXTS))


def test_sentence_transformers_loads_its_layout(tiny: Tiny, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    clip = tiny(quick_gelu=True)
    save_sentence_transformers(clip, tmp_path)
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    texts = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(texts, encode_texts(clip, TEXTS), atol=1e-5)
    picture = _picture(32, 32)
    images = model.encode([picture], normalize_embeddings=True)
    np.testing.assert_allclose(images, encode_images(clip, [picture]).astype(np.float32), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["clip-quickgelu", "roberta", "siglip", pytest.param("coca", marks=pytest.mark.nightly)]
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
    length = max(int((ids[1] != facts["pad_token_id"]).sum()) + facts["padding_after_the_longest"], 0)
    if kind == "siglip":
        length = facts["shortest_length"]
    alone = session.run(None, {"input_ids": ids[1:2, :length]})[0]
    assert np.abs(alone - expected[1:2]).max() <= 1e-5
    assert (tmp_path / "onnx" / "tokenizer.json").is_file() == (kind in ("roberta", "siglip"))


def test_onnx_without_its_packages(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paraclip_core.clip.onnx_export.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"onnx and onnxscript; run: pip install 'paraclip\[export\]'"):
        save_onnx(tiny(), tmp_path)


def test_what_clip_model_does_not_have_is_named(tiny: Tiny, towers: Any, tmp_path: Path) -> None:
    small = ModelOptions(text_width=64, text_layers=2, text_heads=2, embed_dim=32)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    cases = {
        "tf_efficientnet_lite0": embedded_clip(small),
        "no_causal_mask = True": tiny({"no_causal_mask": True}, custom_text=True),
        "vision_cfg.no_ln_pre = True": tiny(vision_cfg={**vision, "no_ln_pre": True}),
    }
    for kind in ("roberta", "siglip", "coca"):
        (tmp_path / kind).mkdir()
        cases[{"roberta": "roberta", "siglip": "siglip", "coca": "attentional_pool"}[kind]] = towers.model_of(
            kind, tmp_path / kind
        )
    for reason, clip in cases.items():
        assert reason in str(hf_obstacle(clip))
        with pytest.raises(ModelError, match="export it as open_clip"):
            save_hf(clip, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    clip = tiny()
    clip.preprocess_cfg["resize_mode"] = "longest"
    assert "longest" in str(hf_obstacle(clip))
