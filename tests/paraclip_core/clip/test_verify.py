"""What makes stored image embeddings invalid, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paraclip_core.clip.encode import encode_images
from paraclip_core.clip.model import ClipModel, image_tower_hash
from paraclip_core.clip.verify import check_features, check_images, check_towers
from paraclip_core.errors import ModelError

Tiny = Callable[..., ClipModel]


def pictures(count: int = 3) -> list[Image.Image]:
    values = np.random.RandomState(0).randint(0, 256, (count, 40, 40, 3)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in values]


def test_another_text_tower_changes_nothing(tiny: Tiny) -> None:
    base, tuned = tiny(), tiny()
    with torch.no_grad():
        tuned.model.get_parameter("text_projection").zero_()
    assert all(check.valid and not check.differences for check in check_towers(base, tuned))
    check, features = check_images(base, tuned, pictures(), list("abc"))
    assert check.valid and features.shape == (3, 32) and "3 of 3" in check.detail


@pytest.mark.parametrize("change", ["nextafter", "sign of zero"])
def test_the_smallest_change_of_the_image_tower_is_seen(tiny: Tiny, change: str) -> None:
    base, tuned = tiny(), tiny()
    bias = tuned.model.get_parameter("visual.ln_post.bias")
    with torch.no_grad():
        bias[3] = -0.0 if change == "sign of zero" else bias.detach()[3].nextafter(torch.tensor(1.0))
    tower, preprocess = check_towers(base, tuned)
    assert not tower.valid and preprocess.valid


def test_other_images_and_another_preprocessing(tiny: Tiny) -> None:
    base, changed, other = tiny(), tiny(), tiny()
    with torch.no_grad():
        for parameter in changed.visual.parameters():
            parameter.add_(1)
    check, _ = check_images(base, changed, pictures(), list("abc"))
    assert not check.valid and check.differences[0].startswith("a: by up to") and "0 of 3" in check.detail
    other.preprocess_cfg["interpolation"] = "bilinear"
    same, preprocess = check_towers(base, other)
    assert same.valid and not preprocess.valid
    check, _ = check_images(base, tiny(embed_dim=16), pictures(), list("abc"))
    assert not check.valid and "32 and 16 dimensions" in check.detail


@pytest.mark.parametrize("change", [{"quick_gelu": True}, {"vision_cfg": {"head_width": 32}}])
def test_the_same_weights_with_another_activation_or_other_heads(tiny: Tiny, change: dict[str, Any]) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    base = tiny(vision_cfg=vision)
    other = tiny(**{**change, "vision_cfg": {**vision, **change.get("vision_cfg", {})}})
    other.model.load_state_dict(base.model.state_dict())
    assert image_tower_hash(base) == image_tower_hash(other)
    tower, preprocess = check_towers(base, other)
    assert not tower.valid and preprocess.valid and "compute otherwise" in tower.detail


def test_stored_features(tiny: Tiny) -> None:
    clip = tiny()
    computed = encode_images(clip, pictures())
    names = list("abc")
    assert check_features(computed, computed, names).valid
    assert check_features(computed.astype(np.float32) * 5, computed, names).valid, "length does not matter"
    wrong = computed.astype(np.float32)
    wrong[1, 4] += 0.05
    check = check_features(wrong, computed, names)
    assert not check.valid and len(check.differences) == 1 and check.differences[0].startswith("b: ")
    wrong[2, 0] = np.nan
    assert len(check_features(wrong, computed, names).differences) == 2
    with pytest.raises(ModelError, match="stored features are"):
        check_features(computed[:, :8], computed, names)
