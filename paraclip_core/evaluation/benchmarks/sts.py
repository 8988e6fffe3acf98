"""Semantic textual similarity: how well cosines between sentences order pairs as people do.

Spearman's correlation of cosine and human score over all pairs of the test files together ("all"), as SentEval, SimCSE
and mteb report it. Formats: one TSV with a header and the columns score, sentence1, sentence2 (STS-B, STS13); the
header-less ``sts-test.csv`` of the STS-Benchmark; or a folder of SemEval's ``STS.input.*.txt`` and ``STS.gs.*.txt``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.pool import TextEncoder, unique_features
from paraclip_core.evaluation.rows import lines, plain_tsv
from paraclip_core.evaluation.samples import Measured, Sample

__all__ = ["ScoredPairs", "gold_score", "load", "measure"]


@dataclass
class ScoredPairs:
    """Sentence pairs with human scores."""

    first: list[str]
    second: list[str]
    gold: list[float]
    without_score: int = 0
    """Pairs with a blank score, which the protocol leaves out."""

    def add(self, first: str, second: str, score: float | None) -> None:
        """Append a pair; one without score is counted only."""
        if score is None:
            self.without_score += 1
            return
        self.first.append(first.strip())
        self.second.append(second.strip())
        self.gold.append(score)

    def checked(self, path: Path) -> ScoredPairs:
        """Itself, if a rank correlation can be had.

        Raises:
            BenchmarkError: there are fewer than two different scores.
        """
        if len(set(self.gold)) < 2:
            raise BenchmarkError(
                f"{path}: {len(self.gold)} scored pairs without two different scores; is it cut short?"
            )
        return self


def load(path: Path) -> ScoredPairs:
    """Read the pairs.

    Raises:
        BenchmarkError: the file or folder is in none of the formats; names file, line and expectation.
    """
    pairs = ScoredPairs([], [], [])
    if path.is_dir():
        _load_semeval(path, pairs)
    elif _has_header(path):
        for number, row in plain_tsv(path, ("score", "sentence1", "sentence2")):
            pairs.add(row["sentence1"], row["sentence2"], gold_score(path, number, row["score"]))
    else:
        for number, line in lines(path):
            cells = line.split("\t")
            if len(cells) < 7:
                raise BenchmarkError(
                    f"{path}, line {number}: {len(cells)} fields, expected 7: genre … score, sentences"
                )
            pairs.add(cells[5], cells[6], gold_score(path, number, cells[4]))
    return pairs.checked(path)


def measure(pairs: ScoredPairs, encode: TextEncoder) -> Measured:
    """Spearman of the cosines; each pair is a cluster of its own."""
    features, rows = unique_features(encode, pairs.first + pairs.second)
    count = len(pairs.gold)
    cosines = _cosines(features, rows[:count], rows[count:])
    sample = Sample(cosines, np.arange(count), np.asarray(pairs.gold, np.float64))
    notes: dict[str, Any] = {
        "protocol": "Spearman of cosine and human score over all pairs",
        "pairs": count,
        "pairs_without_score": pairs.without_score,
    }
    return Measured({"spearman": sample}, notes)


def gold_score(path: Path, number: int, text: str) -> float | None:
    """A human score, None where the cell is blank.

    Raises:
        BenchmarkError: it is not a finite number.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BenchmarkError(f"{path}, line {number}: score {text!r}, expected a number or a blank")
    return value


def _cosines(features: NDArray[np.float32], a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    parts = [
        np.einsum("nd,nd->n", features[a[i : i + 8192]], features[b[i : i + 8192]], dtype=np.float64)
        for i in range(0, len(a), 8192)
    ]
    return np.concatenate(parts)


def _has_header(path: Path) -> bool:
    for _, line in lines(path):
        cells = line.split("\t")
        # The STS-Benchmark's own file has the score in its fifth column and no header.
        return not (len(cells) >= 7 and _is_number(cells[4]))
    raise BenchmarkError(f"{path} is empty; expected tab-separated score, sentence1, sentence2")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _load_semeval(folder: Path, pairs: ScoredPairs) -> None:
    inputs = sorted(folder.glob("STS.input.*.txt"))
    if not inputs:
        raise BenchmarkError(f"{folder} has no STS.input.*.txt; expected SemEval's files, or the path of one TSV file")
    for source in inputs:
        answers = source.with_name(source.name.replace("STS.input.", "STS.gs.", 1))
        scores = [gold_score(answers, number, line) for number, line in lines(answers)]
        sentences = list(lines(source))
        if len(scores) != len(sentences):
            raise BenchmarkError(f"{answers} has {len(scores)} lines, expected {len(sentences)} as in {source.name}")
        for (number, line), score in zip(sentences, scores, strict=True):
            cells = line.split("\t")
            if len(cells) < 2:
                raise BenchmarkError(f"{source}, line {number}: one field, expected two sentences with a tab between")
            pairs.add(cells[0], cells[1], score)
