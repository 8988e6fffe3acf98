"""Semantic textual similarity and SICK relatedness: how well sentence cosines order pairs compared to people.

Spearman's correlation of cosine and human score over all pairs of the test files together ("all"), as reported by
SentEval, SimCSE and mteb. Formats: one TSV with a header and the columns score, sentence1, sentence2 (STS-B, STS13);
the header-less ``sts-test.csv`` of the STS-Benchmark; or a folder of SemEval's ``STS.input.*.txt`` and
``STS.gs.*.txt``.
SICK (Marelli et al., LREC 2014): ``SICK_test_annotated.txt``, or the TEST rows of the single ``SICK.txt``.

The seven tasks together are STS12 to STS16, the STS-Benchmark and SICK-R, and the mean of the seven (Gao et al.,
SimCSE, EMNLP 2021). Their folder is SentEval's (``STS/STS12-en-test`` …, ``STS/STSBenchmark``, ``SICK``), or has one
file or folder for each task, named after it: ``STS12.tsv``, ``STSB-test.tsv``, ``sick`` …

The texts circulate in two variants, which give different figures: as published by SemEval and used by mteb ("raw"),
and with a space before each punctuation mark, as SentEval's scripts write them ("tokenized"). For each task the notes
name the variant of the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Measured, TextEncoder, unique_features
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.intervals import STRATUM, Sample, components
from paraclip_core.evaluation.published import lines, plain_tsv
from paraclip_core.evaluation.scores import pair_scores

SICK_FILES = ("SICK_test_annotated.txt", "SICK.txt")
TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
"""The tasks, by mteb's names."""
_BENCHMARK = ("sts-test.csv", "STSB-test.tsv", "STSBenchmark.tsv", "stsb.tsv")
_PLACES = (".", "raw", "STS", "sts", "downstream/STS", "downstream")
_DETACHED = re.compile(r"\w [.,;:?!](?: |$)")
_ATTACHED = re.compile(r"\w[.,;:?!](?: |$)")


@dataclass
class ScoredPairs:
    """Sentence pairs with human scores."""

    first: list[str]
    second: list[str]
    gold: list[float]
    without_score: int = 0
    """Pairs with a blank score, which the protocol excludes."""

    def add(self, first: str, second: str, score: float | None) -> None:
        """Append a pair; a pair without a score is only counted."""
        if score is None:
            self.without_score += 1
            return
        self.first.append(first.strip())
        self.second.append(second.strip())
        self.gold.append(score)


def read_sts(path: Path) -> ScoredPairs:
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
    return _enough(path, pairs)


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
    return _enough(path, pairs, "TEST pairs")


def _enough(path: Path, pairs: ScoredPairs, what: str = "pairs") -> ScoredPairs:
    if len(pairs.gold) < 2:
        raise BenchmarkError(
            f"{path} has {len(pairs.gold)} {what} with a score and {pairs.without_score} with a blank one; expected at "
            "least two with a score: take the published test file, with its scores, or leave the benchmark out"
        )
    return pairs


def _sick_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in SICK_FILES:
        if (path / name).is_file():
            return path / name
    raise BenchmarkError(f"{path} has no {' or '.join(SICK_FILES)}")


def measure(pairs: ScoredPairs, encode: TextEncoder) -> Measured:
    """Spearman of the cosines; pairs that share a text form a cluster."""
    features, rows = unique_features(encode, pairs.first + pairs.second)
    count = len(pairs.gold)
    cosines = pair_scores(features, rows[:count], features, rows[count:])
    clusters = components(rows[:count], rows[count:])
    # In a small file all pairs may hang together; then each counts by itself.
    clusters = clusters if len(np.unique(clusters)) > 1 else np.arange(count)
    sample = Sample(cosines, clusters, np.asarray(pairs.gold, np.float64))
    notes: dict[str, Any] = {
        "protocol": "Spearman of cosine and human score over all pairs",
        "pairs": count,
        "pairs_without_score": pairs.without_score,
    }
    return Measured({"spearman": sample}, notes)


def _gold_score(path: Path, number: int, text: str) -> float | None:
    """The score in a cell; None if it is blank."""
    if not text.strip():
        return None
    if not _is_number(text):
        raise BenchmarkError(f"{path}, line {number}: score {text!r}, expected a number or a blank")
    return float(text)


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
    return Benchmark(title, (spearman,), load, files, aliases, hub_task="sentence-similarity")


def find_tasks(path: Path) -> dict[str, Path]:
    tasks = {task: next(filter(None, (_find(path / place, task) for place in _PLACES)), None) for task in TASKS}
    if missing := [task for task, place in tasks.items() if place is None]:
        raise BenchmarkError(
            f"{path} lacks {', '.join(missing)}; expected SentEval's folder, or one file or folder for each of "
            f"{', '.join(TASKS)}"
        )
    return {task: place for task, place in tasks.items() if place is not None}


def _find(folder: Path, task: str) -> Path | None:
    if task == "SICK-R":
        places = [*(folder / name for name in ("SICK", "sick", "SICK-R")), folder, folder.parent / "sick"]
        return next((place for place in places if any((place / name).is_file() for name in SICK_FILES)), None)
    if task == "STSBenchmark":
        places = [place / name for place in (folder / "STSBenchmark", folder) for name in _BENCHMARK]
        return next((place for place in places if place.is_file()), None)
    if (file := folder / f"{task}.tsv").is_file():
        return file
    places = [folder / f"{task}-en-test", folder / task]
    return next((place for place in places if any(place.glob("STS.input.*.txt"))), None)


def text_variant(pairs: ScoredPairs) -> str:
    """`tokenized` if most punctuation marks have a space before them; otherwise `raw`."""
    texts = [*pairs.first, *pairs.second]
    detached = sum(_DETACHED.search(text) is not None for text in texts)
    return "tokenized" if detached > sum(_ATTACHED.search(text) is not None for text in texts) else "raw"


def measure_all(tasks: Mapping[str, ScoredPairs], encode: TextEncoder) -> Measured:
    """Spearman of each task, and the mean over tasks."""
    parts = {task: measure(pairs, encode) for task, pairs in tasks.items()}
    samples = {task: part.samples["spearman"] for task, part in parts.items()}
    whole = Sample(
        np.concatenate([sample.values for sample in samples.values()]),
        np.concatenate([STRATUM * place + sample.clusters for place, sample in enumerate(samples.values())]),
        np.concatenate([sample.gold for sample in samples.values() if sample.gold is not None]),
    )
    notes = {
        "protocol": "Spearman of cosine and human score over all pairs of a task; mean over the seven tasks",
        "texts": {task: text_variant(pairs) for task, pairs in tasks.items()},
        "pairs": {task: part.notes["pairs"] for task, part in parts.items()},
        "pairs_without_score": sum(part.notes["pairs_without_score"] for part in parts.values()),
    }
    return Measured({"spearman": whole, **{f"spearman@{task}": sample for task, sample in samples.items()}}, notes)


def _load_seven(source: Source) -> Task:
    pairs = {
        task: read_sick(place) if task == "SICK-R" else read_sts(place)
        for task, place in find_tasks(source.need_path()).items()
    }
    return Task(lambda encoder: measure_all(pairs, encoder.texts))


def _seven_files(path: Path, split: str | None) -> list[Path]:
    return sorted({file for place in find_tasks(path).values() for file in _inside(place)})


def _inside(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for file in place.iterdir() if file.name.startswith("STS.") or file.name in SICK_FILES]


STS = _row("STS", read_sts, _sts_files, "stsb", "sts-b", "sts12", "sts13", "sts14", "sts15", "sts16")
SICK = _row("SICK-R", read_sick, lambda path, split: [_sick_file(path)], "sick-r")
STS7 = Benchmark(
    title="Seven STS tasks",
    metrics=(Metric("spearman", "Spearman, mean of seven", headline=True, by_part=True),),
    load=_load_seven,
    files=_seven_files,
    hub_task="sentence-similarity",
    source="https://github.com/facebookresearch/SentEval",
)
