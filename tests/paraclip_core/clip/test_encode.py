"""Padding-free encoding equals the model's own, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from paraclip_core.clip import encode
from paraclip_core.clip.encode import encode_images, encode_ragged, encode_texts, pick_precision
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import Ragged
from paraclip_core.clip.tokenizer import tokenize
from paraclip_core.clip.towers import TextTower
from paraclip_core.errors import InputError, ModelError

Tiny = Callable[..., ClipModel]

TEXTS = [
    "a dog runs on a beach",
    "two men",
    "A",
    "a much longer caption about a small red car that stands beside an old house & a tree, on a rainy day",
    "photo!!! of 1,000 “things”",
    "word " * 100,
    "a dog runs on a beach",
]


def _own(clip: ClipModel) -> torch.Tensor:
    """What open_clip itself makes of the padded texts."""
    padded = open_clip.SimpleTokenizer(context_length=clip.context_length)(TEXTS)
    return F.normalize(clip.model.encode_text(padded), dim=-1)  # type: ignore[operator]


@pytest.mark.parametrize("chunk_tokens", [1, 40, 100_000])
def test_forward_equals_open_clip(any_clip: ClipModel, chunk_tokens: int) -> None:
    with torch.no_grad():
        found = encode_ragged(any_clip, tokenize(any_clip, TEXTS), chunk_tokens=chunk_tokens)
        expected = _own(any_clip)
    assert found.shape == (len(TEXTS), 32) and found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5
    assert torch.allclose(found.norm(dim=-1), torch.ones(len(TEXTS)))
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_gradients_equal_open_clips(any_clip: ClipModel) -> None:
    target = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(3))
    gradients = []
    for features in (_own(any_clip), encode_ragged(any_clip, tokenize(any_clip, TEXTS), chunk_tokens=60)):
        any_clip.model.zero_grad(set_to_none=True)
        (features * target).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in any_clip.model.named_parameters() if p.grad is not None})
    expected, found = gradients
    assert expected.keys() == found.keys() and len(found) > 20
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm())
        assert error <= 1e-4 * max(float(gradient.norm()), 1e-3 * largest), name


def test_a_bidirectional_tower_takes_its_own_padded_path(tiny: Tiny) -> None:
    clip = tiny({"no_causal_mask": True, "pool_type": "argmax"}, custom_text=True)
    with torch.no_grad():
        found = encode_ragged(clip, tokenize(clip, TEXTS))
        assert (found - _own(clip)).abs().max() <= 1e-5


def test_bf16_is_near_fp32_and_still_float32(tiny: Tiny) -> None:
    clip = tiny()
    tokens = tokenize(clip, TEXTS)
    with torch.no_grad():
        exact, rough = encode_ragged(clip, tokens), encode_ragged(clip, tokens, precision="bf16")
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05


def test_the_arithmetic_that_is_picked_is_no_slower_than_fp32() -> None:
    picked = pick_precision("auto", torch.device("cpu"))

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        took = []
        for _ in range(5):
            start = time.process_time()
            left @ right
            took.append(time.process_time() - start)
        return min(took)

    # Where a CPU has no instructions for bf16, it is fifty times.
    assert seconds({"bf16": torch.bfloat16, "fp32": torch.float32}[picked]) < 5 * seconds(torch.float32)
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"


def test_short_contexts_and_empty_lists(tiny: Tiny) -> None:
    clip = tiny({"context_length": 16})
    with torch.no_grad():
        assert (encode_ragged(clip, tokenize(clip, TEXTS)) - _own(clip)).abs().max() <= 1e-5
    assert encode_texts(clip, []).shape == (0, 32)
    assert encode_ragged(clip, Ragged.from_lists([])).shape == (0, 32)
    assert encode_images(clip, []).shape == (0, 32)


def test_wrong_tokens_are_told(tiny: Tiny) -> None:
    clip = tiny({"context_length": 16})
    with pytest.raises(InputError, match="reads 1 to 16"):
        encode_ragged(clip, Ragged.from_lists([list(range(17))]))
    with pytest.raises(InputError, match="0 or 2"):
        encode_ragged(clip, Ragged.from_lists([[], [1, 2]]))
    with pytest.raises(ModelError, match="tokenized for another model"):
        encode_ragged(clip, Ragged.from_lists([[60000]]))


def test_chunks_stay_within_the_budget_and_waste_little() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(4, 30, 1500))
    tower = TextTower("causal", lambda ids: ids, pad=0)
    slices = list(encode._chunks(lengths, 2048, tower, 77))
    assert [s.start for s in slices[1:]] == [s.stop for s in slices[:-1]] and slices[-1].stop == 1500
    padded = [(s.stop - s.start) * int(lengths[s.stop - 1]) for s in slices]
    assert max(padded) <= 2048
    assert sum(padded) < 1.06 * lengths.sum()
    padded_tower = TextTower("padded", lambda ids: ids, pad=0)
    whole = list(encode._chunks(lengths, 2048, padded_tower, 77))
    assert {s.stop - s.start for s in whole[:-1]} == {2048 // 77}


def test_images_of_a_real_archive(tiny: Tiny, data_root: Path) -> None:
    clip = tiny()
    with ImageArchive(data_root / "flickr8k/images_128.tar") as archive:
        images = [archive.open(name) for name in archive.names()[:5]]
    transform = encode.image_transform(clip)
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_image(torch.stack([transform(i) for i in images])), dim=-1)  # type: ignore[operator]
    found = encode_images(clip, images, batch_size=2)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), atol=1e-3)
