"""Texts are encoded in blocks, and an encoder's hash sees how it computes."""

from __future__ import annotations

import numpy as np
import pytest

from paraclip_core.evaluation.encoder import ModelEncoder


def test_texts_are_encoded_in_blocks(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = ModelEncoder(models[0], "cpu")
    texts = [f"a dog {i}" for i in range(9)]
    whole = candidate.texts(texts)
    monkeypatch.setattr("paraclip_core.evaluation.encoder.TEXTS", 4)
    np.testing.assert_allclose(candidate.texts(texts), whole, atol=1e-6)
    assert candidate.texts([]).shape == (0, 32)
    assert candidate.image_encoder_hash == ModelEncoder(models[1], "cpu").image_encoder_hash
    base, quick = ModelEncoder(models[0], "cpu"), ModelEncoder(models[0], "cpu")
    quick.clip.model_cfg["quick_gelu"] = True
    assert base.image_encoder_hash != quick.image_encoder_hash
