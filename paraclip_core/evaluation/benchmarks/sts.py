"""Semantic textual similarity and SICK relatedness: how well cosines between sentences order pairs as people do.

Spearman's correlation of cosine and human score over all pairs of the test files together ("all"), as SentEval, SimCSE
and mteb report it. Formats: one TSV with a header and the columns score, sentence1, sentence2 (STS-B, STS13); the
header-less ``sts-test.csv`` of the STS-Benchmark; or a folder of SemEval's ``STS.input.*.txt`` and ``STS.gs.*.txt``.
SICK (Marelli et al., LREC 2014): ``SICK_test_annotated.txt``, or the TEST rows of the single ``SICK.txt``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.metrics import pair_scores
from paraclip_core.evaluation.pool import TextEncoder, unique_features
from paraclip_core.evaluation.results import Measured, Sample
from paraclip_core.evaluation.rows import lines, plain_tsv

SICK_FILES = ("SICK_test_annotated.txt", "SICK.txt")


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
        """Itself, if a rank correlation can be had."""
        if len(set(self.gold)) < 2:
            raise BenchmarkError(
                f"{path}: {len(self.gold)} scored pairs without two different scores; is it cut short?"
            )
        return self


def read_sts(path: Path) -> ScoredPairs:
    """Read the pairs of STS."""
    pairs = ScoredPairs([], [], [])
    if path.is_dir():
        _load_semeval(path, pairs)
    elif _has_header(path):
        for number, row in plain_tsv(path, ("score", "sentence1", "sentence2")):
            pairs.add(row["sentence1"], row["sentence2"], _gold_score(path, number, row["score"]))
    else:
        for number, line in lines(path):
            cells = line.split("\t")
            if len(cells) < 7:
                raise BenchmarkError(
                    f"{path}, line {number}: {len(cells)} fields, expected 7: genre … score, sentences"
                )
            pairs.add(cells[5], cells[6], _gold_score(path, number, cells[4]))
    return pairs.checked(path)


def read_sick(path: Path) -> ScoredPairs:
    """Read the test pairs of SICK with their relatedness, 1 to 5."""
    path, pairs = _sick_file(path), ScoredPairs([], [], [])
    for number, row in plain_tsv(path, ("sentence_A", "sentence_B")):
        if row.get("SemEval_set", "TEST") != "TEST":
            continue
        score = row.get("relatedness_score", row.get("relatedness"))
        if score is None:
            raise BenchmarkError(f"{path}, line 1: no column relatedness_score; is this the unannotated test file?")
        pairs.add(row["sentence_A"], row["sentence_B"], _gold_score(path, number, score))
    return pairs.checked(path)


def _sick_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in SICK_FILES:
        if (path / name).is_file():
            return path / name
    raise BenchmarkError(f"{path} has no {' or '.join(SICK_FILES)}")


def measure(pairs: ScoredPairs, encode: TextEncoder) -> Measured:
    """Spearman of the cosines; each pair is a cluster of its own."""
    features, rows = unique_features(encode, pairs.first + pairs.second)
    count = len(pairs.gold)
    cosines = pair_scores(features, rows[:count], features, rows[count:])
    sample = Sample(cosines, np.arange(count), np.asarray(pairs.gold, np.float64))
    notes: dict[str, Any] = {
        "protocol": "Spearman of cosine and human score over all pairs",
        "pairs": count,
        "pairs_without_score": pairs.without_score,
    }
    return Measured({"spearman": sample}, notes)


def _gold_score(path: Path, number: int, text: str) -> float | None:
    """None where the cell is blank."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BenchmarkError(f"{path}, line {number}: score {text!r}, expected a number or a blank")
    return value


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
        scores = [_gold_score(answers, number, line) for number, line in lines(answers)]
        sentences = list(lines(source))
        if len(scores) != len(sentences):
            raise BenchmarkError(f"{answers} has {len(scores)} lines, expected {len(sentences)} as in {source.name}")
        for (number, line), score in zip(sentences, scores, strict=True):
            cells = line.split("\t")
            if len(cells) < 2:
                raise BenchmarkError(f"{source}, line {number}: one field, expected two sentences with a tab between")
            pairs.add(cells[0], cells[1], score)


def _sts_files(path: Path, split: str | None) -> list[Path]:
    return sorted(path.glob("STS.*.txt")) if path.is_dir() else [path]


def _row(title: str, read: Callable[[Path], ScoredPairs], files: Callable[..., list[Path]], *aliases: str) -> Benchmark:
    def load(source: Source) -> Task:
        pairs = read(source.need_path())
        return Task(lambda encoder: measure(pairs, encoder.texts))

    spearman = Metric("spearman", "Spearman", headline=True)
    return Benchmark(title, (spearman,), load, files, aliases, mteb=True, hub_task="sentence-similarity")


STS = _row("STS", read_sts, _sts_files, "stsb", "sts-b", "sts12", "sts13", "sts14", "sts15", "sts16")
SICK = _row("SICK-R", read_sick, lambda path, split: [_sick_file(path)], "sick-r")
