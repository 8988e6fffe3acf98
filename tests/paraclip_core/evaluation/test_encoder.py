"""Texts are encoded in blocks or with their paraphrases, and an encoder's hash sees how it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.errors import UnknownQueriesError
from paraclip_core.evaluation.encoder import ModelEncoder, model_encoder
from paraclip_core.tables import HEADS_MODEL


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


def test_an_expanded_model_has_the_mean_of_a_text_and_its_paraphrases(models: tuple[str, str], tmp_path: Path) -> None:
    heads = tmp_path / "heads.parquet"
    table = pa.table({"query": ["a dog", "the sea"], "paraphrases": [["one dog", "a hound"], []]})
    pq.write_table(table.replace_schema_metadata({HEADS_MODEL: models[1]}), heads)
    plain, expanded = model_encoder(models[1], "cpu"), model_encoder(str(heads), "cpu")
    reported: list[tuple[str, int, int]] = []
    features = expanded.texts(["the sea", "a  dog", "the sea"], lambda *facts: reported.append(facts))
    mean = plain.texts(["a  dog", "one dog", "a hound"]).mean(axis=0)
    np.testing.assert_allclose(features[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(features[[0, 2]], plain.texts(["the sea"] * 2), atol=1e-6)
    assert reported == [("texts", 5, 5)] and expanded.image_encoder_hash == plain.image_encoder_hash
    with pytest.raises(UnknownQueriesError, match=r"heads\.parquet lacks 2 of 3 texts, first 'a cat'") as caught:
        expanded.texts(["a cat", "a dog", "x", "x"])
    assert caught.value.queries == ["a cat", "x"]
