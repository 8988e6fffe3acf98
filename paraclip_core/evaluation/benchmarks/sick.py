"""SICK relatedness (Marelli et al., LREC 2014): Spearman of cosine and relatedness over the test pairs.

Formats: ``SICK_test_annotated.txt`` or a folder with it, or the single ``SICK.txt``, of which the TEST rows count.
"""

from __future__ import annotations

from pathlib import Path

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks.sts import ScoredPairs, gold_score, measure
from paraclip_core.evaluation.rows import plain_tsv

__all__ = ["load", "measure", "test_file"]

FILES = ("SICK_test_annotated.txt", "SICK.txt")


def load(path: Path) -> ScoredPairs:
    """Read the test pairs with their relatedness, 1 to 5.

    Raises:
        BenchmarkError: the file is missing or in another format; names file, line and expectation.
    """
    path, pairs = test_file(path), ScoredPairs([], [], [])
    for number, row in plain_tsv(path, ("sentence_A", "sentence_B")):
        if row.get("SemEval_set", "TEST") != "TEST":
            continue
        score = row.get("relatedness_score", row.get("relatedness"))
        if score is None:
            raise BenchmarkError(f"{path}, line 1: no column relatedness_score; is this the unannotated test file?")
        pairs.add(row["sentence_A"], row["sentence_B"], gold_score(path, number, score))
    return pairs.checked(path)


def test_file(path: Path) -> Path:
    """The test file itself, or the one in a folder.

    Raises:
        BenchmarkError: the folder has none.
    """
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise BenchmarkError(f"{path} has no {' or '.join(FILES)}")
