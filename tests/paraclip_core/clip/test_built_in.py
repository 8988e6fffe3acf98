"""The built-in base: its options, its projection, its pretrained trunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.encode import encode_images
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import image_encoder_hash, preprocess_hash
from paraclip_core.clip.options import ModelOptions

SMALL = ModelOptions(text_width=64, text_layers=2, embed_dim=32)


def test_the_built_in_base_follows_its_options_only() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built_in_clip(SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = built_in_clip(SMALL)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    wider = built_in_clip(SMALL.model_copy(update={"text_width": 128, "text_layers": 1}))
    assert image_encoder_hash(wider) == image_encoder_hash(first)
    assert preprocess_hash(wider) == preprocess_hash(first)
    assert image_encoder_hash(built_in_clip(SMALL.model_copy(update={"embed_dim": 16}))) != image_encoder_hash(first)


@pytest.mark.parametrize("embed_dim", [32, 1500])
def test_the_projection_is_orthonormal(embed_dim: int) -> None:
    visual: Any = built_in_clip(SMALL.model_copy(update={"embed_dim": embed_dim})).visual
    weight = visual.head.proj.weight.detach().double()
    gram = weight @ weight.T if embed_dim <= 1280 else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_trunk_tells_real_objects_apart(data_root: Path) -> None:
    """The pretrained weights sit where they belong: captions' dogs are near dogs, not near anything."""
    captions = json.loads((data_root / "flickr8k/dataset_flickr8k.json").read_text())["images"]
    text = {f"images/{row['filename']}": " ".join(s["raw"].lower() for s in row["sentences"]) for row in captions[:600]}
    dogs = [name for name, words in text.items() if words.count(" dog ") >= 4][:8]
    others = [name for name, words in text.items() if "dog" not in words and "man" in words][:8]
    with ImageArchive(data_root / "flickr8k/images_128.tar") as images:
        features = encode_images(built_in_clip(ModelOptions()), (images.open(name) for name in dogs + others))
    cosines = features.astype(np.float32) @ features.astype(np.float32).T
    np.fill_diagonal(cosines, np.nan)
    assert np.nanmean(cosines[:8, :8]) > np.nanmean(cosines[:8, 8:]) + 0.05
