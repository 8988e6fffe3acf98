"""The mean of a query's feature and its paraphrases', and heads files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from paraclip_core.clip.expansion import heads_model, mean_features, read_heads
from paraclip_core.errors import InputError
from paraclip_core.tables import HEADS_MODEL


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """A vector of length 1 for each text, which depends on nothing else."""
    vectors = np.array([np.random.default_rng(len(text)).normal(size=8) for text in texts]).reshape(-1, 8)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_mean_is_that_of_each_group_alone() -> None:
    groups = [["a"], ["a dog", "one dog here", "a hound"], ["no", "none"]]
    means = mean_features(encode, groups)
    assert means.dtype == np.float32 and means.shape == (3, 8)
    for group, mean in zip(groups, means, strict=True):
        alone = np.stack([encode([text])[0] for text in group]).astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean, alone / np.sqrt((alone**2).sum()), atol=1e-6)
    np.testing.assert_allclose(means[0], encode(["a"])[0], atol=1e-6)
    assert mean_features(encode, []).shape == (0, 8)


def write_heads(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata({HEADS_MODEL: "ViT-B-32:openai"}), path)
    return path


def test_a_query_is_found_as_models_read_it(tmp_path: Path) -> None:
    rows = {"query": ["caf&eacute;  at\tnight", "a dog"], "paraphrases": [["a bar", "a pub"], []]}
    heads = read_heads(write_heads(tmp_path / "heads.parquet", rows))
    assert len(heads) == 2 and heads.model == heads_model(heads.path) == "ViT-B-32:openai"
    assert heads.group("café at night") == ["café at night", "a bar", "a pub"]
    assert heads.group("a dog") == ["a dog"] and heads.group("A dog") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.parquet", "absent.parquet does not exist; expected a file that `paraclip expand` has written"),
        ("text.parquet", "text.parquet is no heads file"),
        ("table.parquet", "table.parquet is no heads file"),
        ("damaged.parquet", "damaged.parquet cannot be read"),
    ],
)
def test_what_is_no_heads_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "text.parquet").write_text("query")
    pq.write_table(pa.table({"query": ["a"], "paraphrases": [["b"]]}), tmp_path / "table.parquet")
    damaged = write_heads(tmp_path / "damaged.parquet", {"query": ["a" * 100], "paraphrases": [["b"]]})
    damaged.write_bytes(damaged.read_bytes()[:4] + bytes(40) + damaged.read_bytes()[44:])
    with pytest.raises(InputError, match=message):
        read_heads(tmp_path / name)
