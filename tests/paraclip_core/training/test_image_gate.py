"""Cosines of texts with their images."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.training.image_gate import image_cosines


def test_cosines_are_those_of_the_towers_whatever_the_features_length(tiny: ModuleType) -> None:
    clip, random_state = tiny.tiny_clip(), np.random.RandomState(1)
    texts = tiny.tiny_texts(random_state.randint(0, 400, (20, 8)))
    features = random_state.randn(20, clip.embed_dim)
    found = image_cosines(clip, texts, features)
    vectors = encode_ragged(clip, texts).detach().numpy().astype(np.float64)
    for row in range(20):
        whole = np.linalg.norm(vectors[row]) * np.linalg.norm(features[row])
        assert abs(found[row] - vectors[row] @ features[row] / whole) <= 0.5e-4 + 1e-6
    assert np.array_equal(found, image_cosines(clip, texts, (7.5 * features).astype(np.float32)))
    assert np.array_equal(found[3:9], image_cosines(clip, texts.take(np.arange(3, 9)), features[3:9]))


def test_the_model_is_left_as_it_was(tiny: ModuleType) -> None:
    clip = tiny.tiny_clip()
    texts = tiny.tiny_texts(np.ones((2, 8), int))
    clip.model.train()
    image_cosines(clip, texts, np.ones((2, clip.embed_dim)))
    assert clip.model.training
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_an_image_without_features_worth_the_name_has_no_cosine(tiny: ModuleType) -> None:
    clip = tiny.tiny_clip()
    assert image_cosines(clip, tiny.tiny_texts(np.ones((1, 8), int)), np.zeros((1, clip.embed_dim))).tolist() == [0.0]
    assert len(image_cosines(clip, tiny.tiny_texts(np.ones((0, 8), int)), np.zeros((0, clip.embed_dim)))) == 0
