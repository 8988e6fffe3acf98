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

from paraclip_core.clip.expansion import mean_features, read_heads, split_expanded
from paraclip_core.errors import InputError, UnknownModelError


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


def test_a_query_is_found_as_models_read_it(tmp_path: Path) -> None:
    table = pa.table({"query": ["caf&eacute;  at\tnight", "a dog"], "paraphrases": [["a bar", "a pub"], []]})
    pq.write_table(table, tmp_path / "heads.parquet")
    heads = read_heads(tmp_path / "heads.parquet")
    assert len(heads) == 2
    assert heads.group("café at night") == ["café at night", "a bar", "a pub"]
    assert heads.group("a dog") == ["a dog"] and heads.group("A dog") is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "heads.parquet does not exist; expected a file that `paraclip expand` has written"),
        ({"query": ["a"]}, "heads.parquet has no column 'paraphrases'"),
        ({"query": ["a"], "paraphrases": ["b"]}, "heads.parquet cannot be read"),
        ({"query": ["a", None], "paraphrases": [[], []]}, "heads.parquet, row 1: the query or one of its paraphrases"),
        ({"query": ["a"], "paraphrases": [["b", None]]}, "row 0: .* is null"),
    ],
)
def test_what_is_no_heads_file_is_named(tmp_path: Path, columns: dict[str, Any] | None, message: str) -> None:
    if columns is not None:
        pq.write_table(pa.table(columns), tmp_path / "heads.parquet")
    with pytest.raises(InputError, match=message):
        read_heads(tmp_path / "heads.parquet")
    (tmp_path / "other.parquet").write_text("query")
    with pytest.raises(InputError, match=r"other\.parquet cannot be read"):
        read_heads(tmp_path / "other.parquet")


def test_references_to_expanded_models() -> None:
    assert split_expanded("expanded:a/h.parquet:ViT-B-32:openai") == (Path("a/h.parquet"), "ViT-B-32:openai")
    assert split_expanded("ViT-B-32:openai") == (None, "ViT-B-32:openai")
    for wrong in ("expanded:h.parquet", "expanded:h.csv:m", "expanded:"):
        with pytest.raises(UnknownModelError, match=r"expected expanded:HEADS\.parquet:MODEL"):
            split_expanded(wrong)
