"""Query expansion: the mean of a query's feature and those of its paraphrases, and heads files, which keep both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paraclip_core.captions.clean import clean
from paraclip_core.errors import InputError
from paraclip_core.tables import HEADS_MODEL
from paraclip_core.text_safety import one_line

SHORTEST = 1e-12
"""Length below which a mean is not scaled to 1."""
EXPECTED = "expected a file that `paraclip expand` has written"


def mean_features(
    encode: Callable[[Sequence[str]], NDArray[np.float32]], texts: Sequence[Sequence[str]]
) -> NDArray[np.float32]:
    """The mean feature of each group of texts, scaled to length 1: float32 [n, d].

    `encode` maps m texts to float32 [m, d], rows of length 1. It is called once, with the texts of all groups, none of
    which may be empty.
    """
    features = encode([text for group in texts for text in group])
    if not len(texts):
        return features
    starts = np.cumsum([0, *map(len, texts)])[:-1]
    # The sum has the direction of the mean.
    sums = np.add.reduceat(features, starts, axis=0)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), SHORTEST)


@dataclass(frozen=True)
class Heads:
    """The paraphrases of head queries, those that are asked often, from a heads file."""

    path: Path
    model: str
    """Reference of the model that the queries were expanded for."""
    paraphrases: Mapping[str, Sequence[str]]
    """By query, cleaned."""

    def __len__(self) -> int:
        return len(self.paraphrases)

    def group(self, query: str) -> list[str] | None:
        """A query and its paraphrases; None if the file does not hold the query."""
        paraphrases = self.paraphrases.get(clean(query))
        return None if paraphrases is None else [query, *paraphrases]


def heads_model(path: Path) -> str | None:
    """The model that a heads file is for, as its header says; None if the file is no heads file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    return metadata[HEADS_MODEL].decode() if HEADS_MODEL in metadata else None


def read_heads(path: Path) -> Heads:
    """Read the paraphrases of a heads file (schema `tables.HEADS`); its vectors stay on disk."""
    if (model := heads_model(path)) is None:
        raise InputError(f"{path} {'is no heads file' if path.is_file() else 'does not exist'}; {EXPECTED}")
    try:
        columns = pq.read_table(path, columns=["query", "paraphrases"]).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}; {EXPECTED}") from error
    pairs = zip(columns["query"], columns["paraphrases"], strict=True)
    return Heads(path, model, {clean(query): texts for query, texts in pairs})
