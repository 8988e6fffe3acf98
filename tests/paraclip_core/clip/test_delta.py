"""A tuned text tower as a small file beside its base."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from paraclip_core.clip.delta import FORMAT, _pack, _unpack, apply_delta, delta_facts, save_delta
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.model import ClipModel, image_tower_hash, weights_hash
from paraclip_core.errors import ModelError

Tiny = Callable[..., ClipModel]
TEXTS = ["a dog on a beach", "two men & a boat", "A", "word " * 100]
TRAINED = 500
"""Rows of the embedding that training moves; the rest decay."""


def _tuned(base: ClipModel) -> ClipModel:
    """As training leaves a model: all matrices decayed, all but the unused tokens' rows moved, vectors moved."""
    tuned = deepcopy(base)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weights in tuned.model.named_parameters():
            if name.startswith("visual."):
                continue
            move = torch.randn(weights.shape, generator=generator) * weights.std(correction=0) * 0.2
            if "token_embedding" in name:
                move[TRAINED:] = 0
            weights.mul_(1 - 0.01 * (weights.ndim > 1)).add_(move)
    return tuned


@pytest.fixture
def models(tiny: Tiny) -> tuple[ClipModel, ClipModel]:
    base = tiny()
    return base, _tuned(base)


@pytest.mark.parametrize("extra", [{}, {"custom_text": True}])
def test_base_and_delta_are_the_tuned_model(extra: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    base = tiny(**extra)
    tuned = _tuned(base)
    before = {name: tensor.numpy().copy() for name, tensor in base.model.state_dict().items()}
    after = {name: tensor.numpy() for name, tensor in tuned.model.state_dict().items()}
    path = tmp_path / "d.safetensors"
    facts = save_delta(deepcopy(base), tuned, path)
    assert facts == delta_facts(path)
    assert (facts.base_weights, facts.image_tower) == (weights_hash(base), image_tower_hash(tuned))

    apply_delta(base, path)
    assert facts.weights == weights_hash(base) != facts.base_weights
    assert image_tower_hash(base) == image_tower_hash(tuned)
    # The file read without the code under test: where each weight must be, and how far it may be.
    stored = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    errors = []
    for name, new in after.items():
        restored = base.model.state_dict()[name].numpy()
        if f"{name}:values" not in stored:
            np.testing.assert_array_equal(restored, new)
            continue
        expected = before[name].astype(np.float64) * (1 + facts.factors[name])
        expected[stored[f"{name}:rows"]] += stored[f"{name}:values"] * stored[f"{name}:steps"][:, None].astype(float)
        np.testing.assert_allclose(restored, expected, atol=1e-6)
        errors.append(np.abs(expected - new))
        rest = np.abs(new.astype(np.float64) - before[name] * (1 + facts.factors[name])).max()
        assert errors[-1].max() <= rest / 254 + 1e-6
    largest = max(error.max() for error in errors)
    assert largest == pytest.approx(facts.largest_error, abs=1e-6)
    change = sum(((after[name].astype(np.float64) - before[name]) ** 2).sum() for name in facts.factors)
    relative = (sum((error**2).sum() for error in errors) / change) ** 0.5
    assert relative == pytest.approx(facts.relative_error, rel=1e-3) and relative < 0.02
    cosines = (encode_texts(base, TEXTS) * encode_texts(tuned, TEXTS)).sum(axis=1)
    assert cosines.min() > 0.999
    # Decayed rows cost nothing.
    rows = next(values for name, values in stored.items() if name.endswith("token_embedding.weight:rows"))
    np.testing.assert_array_equal(rows, np.arange(TRAINED))
    assert path.stat().st_size < 0.1 * sum(values.nbytes for values in after.values())


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), columns=st.integers(1, 9), zero=st.integers(0, 9))
def test_no_weight_is_further_than_half_of_the_largest_step(seed: int, rows: int, columns: int, zero: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = (rng.normal(size=(rows, columns)).astype(np.float32) for _ in range(2))
    old[:zero] = 0
    new[: zero // 2] = 0
    parts, factor = _pack(old, new)
    largest = np.abs(new - old * np.float32(1 + factor)).max()
    assert np.abs(_unpack(old, factor, parts) - new).max() <= largest / 254 * (1 + 1e-5) + 1e-6


def test_the_same_model_is_an_empty_delta(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny()
    facts = save_delta(deepcopy(base), tiny(), tmp_path / "d.safetensors")
    assert (facts.largest_error, facts.relative_error, facts.weights) == (0, 0, facts.base_weights)
    apply_delta(base, tmp_path / "d.safetensors")
    assert weights_hash(base) == facts.weights


def test_another_base_is_refused(models: tuple[ClipModel, ClipModel], tmp_path: Path) -> None:
    base, tuned = models
    own = weights_hash(base)
    save_delta(base, tuned, tmp_path / "d.safetensors")
    message = f"belongs to another base: expected weights {own}, but tiny has {weights_hash(tuned)} .the image tower is"
    with pytest.raises(ModelError, match=message):
        apply_delta(tuned, tmp_path / "d.safetensors")


def test_models_that_differ_in_more_than_the_text_tower(tiny: Tiny, tmp_path: Path) -> None:
    other = tiny()
    with torch.no_grad():
        other.model.get_parameter("visual.proj")[0, 0] += 1
    with pytest.raises(ModelError, match=r"their image towers or preprocessings differ, .* give as --base the model"):
        save_delta(tiny(), other, tmp_path / "d.safetensors")
    with pytest.raises(ModelError, match="their architectures differ"):
        save_delta(tiny(), tiny({"layers": 2}), tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_a_damaged_file_is_found(models: tuple[ClipModel, ClipModel], tmp_path: Path) -> None:
    base, tuned = models
    path, bad = tmp_path / "d.safetensors", tmp_path / "bad.safetensors"
    save_delta(deepcopy(base), tuned, path)
    data = path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    tensors = load_file(path)

    def refused(match: str) -> None:
        with pytest.raises(ModelError, match=match):
            apply_delta(deepcopy(base), bad)

    for end in (0, 5, len(data) // 2):
        bad.write_bytes(data[:end])
        refused("is no safetensors file, or is damaged: .*expected a file that `paraclip export MODEL FOLDER --delta`")
    bad.write_bytes(data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:])
    refused("is damaged; .* expected " + delta_facts(path).weights)
    for changed, match in (
        ({"visual.proj:whole": torch.zeros(32, 32)}, "holds visual.proj of the image tower"),
        ({"nothing:whole": torch.zeros(2)}, "nothing"),
        ({"logit_scale:whole": torch.zeros(2)}, "logit_scale has shape"),
        ({"text_projection:rows": torch.full_like(tensors["text_projection:rows"], 9999)}, "out of bounds"),
    ):
        save_file(tensors | changed, bad, metadata)
        refused(match)
    for changed, match in (
        ({"format": "pt"}, f"is no delta: its format is 'pt', expected {FORMAT!r}"),
        ({"delta": "{"}, "is damaged in its metadata"),
        ({"delta": json.dumps({"weights": "x"})}, "is damaged in its metadata"),
    ):
        save_file(tensors, bad, metadata | changed)
        refused(match)
    save_file(tensors, bad)
    refused("is no delta: its format is None")
    bad.unlink()
    refused("is no safetensors file")
