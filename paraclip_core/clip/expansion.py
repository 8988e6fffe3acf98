"""Query expansion: the mean of a query's feature and those of its paraphrases, and heads files, which keep both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paraclip_core.captions.clean import clean
from paraclip_core.errors import InputError, UnknownModelError
from paraclip_core.paths import expand
from paraclip_core.tables import HEADS
from paraclip_core.text_safety import one_line

SHORTEST = 1e-12
"""Length below which a mean is not scaled to 1."""
EXPANDED = "expanded:"
EXPANDED_MODEL = re.compile(rf"{EXPANDED}(.+?\.parquet):(.+)", re.DOTALL)


def split_expanded(reference: str) -> tuple[Path | None, str]:
    """The heads file and the model of ``expanded:HEADS.parquet:MODEL``; None and the reference itself for another.

    Raises:
        UnknownModelError: the reference begins so and goes on differently.
    """
    if not reference.startswith(EXPANDED):
        return None, reference
    if (parts := EXPANDED_MODEL.fullmatch(reference)) is None:
        raise UnknownModelError(f"model {reference!r}: expected {EXPANDED}HEADS.parquet:MODEL")
    return expand(parts[1]), parts[2]


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
    paraphrases: Mapping[str, Sequence[str]]
    """By query, cleaned."""

    def __len__(self) -> int:
        return len(self.paraphrases)

    def group(self, query: str) -> list[str] | None:
        """A query and its paraphrases; None if the file does not hold the query."""
        found = self.paraphrases.get(clean(query))
        return None if found is None else [query, *found]


def read_heads(path: Path) -> Heads:
    """Read the paraphrases of a heads file (schema `tables.HEADS`); its vectors stay on disk, since models differ.

    Raises:
        InputError: the file is missing, or is no heads file.
    """
    made = "expected a file that `paraclip expand` has written"
    if not path.is_file():
        raise InputError(f"{path} does not exist; {made}")
    wanted = [pa.field(name, HEADS.field(name).type) for name in ("query", "paraphrases")]
    try:
        with pq.ParquetFile(path) as file:
            if missing := [field.name for field in wanted if field.name not in file.schema_arrow.names]:
                raise InputError(f"{path} has no column {missing[0]!r}; {made}")
            table = file.read([field.name for field in wanted]).cast(pa.schema(wanted))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}; {made}") from error
    queries, paraphrases = (column.to_pylist() for column in table.columns)
    for row, (query, texts) in enumerate(zip(queries, paraphrases, strict=True)):
        if query is None or texts is None or None in texts:
            raise InputError(f"{path}, row {row}: the query or one of its paraphrases is null; {made}")
    return Heads(path, {clean(query): texts for query, texts in zip(queries, paraphrases, strict=True)})
