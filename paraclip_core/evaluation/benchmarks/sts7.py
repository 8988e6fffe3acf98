"""The seven STS tasks together: STS12 to STS16, the STS-Benchmark and SICK-R, and the mean of the seven (Gao et al.,
SimCSE, EMNLP 2021). Each is Spearman's correlation over all pairs of its test files; the mean has equal weights.

The texts go round in two variants, which give different figures: as SemEval published them and mteb has them
("raw"), and with a blank before each mark, as SentEval's scripts leave them ("tokenized"). The notes name the one that
the files hold, for each task.

Formats: SentEval's folder (``STS/STS12-en-test`` …, ``STS/STSBenchmark``, ``SICK``), or a folder with one file or
folder for each task, named after it: ``STS12.tsv``, ``STSB-test.tsv``, ``sick`` … (:mod:`.sts` lists the formats).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import STRATUM, Measured, Sample
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.benchmarks.sts import SICK_FILES, ScoredPairs, measure, read_sick, read_sts
from paraclip_core.evaluation.pool import TextEncoder

TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
"""By mteb's names."""
_BENCHMARK = ("sts-test.csv", "STSB-test.tsv", "STSBenchmark.tsv", "stsb.tsv")
_PLACES = (".", "raw", "STS", "sts", "downstream/STS", "downstream")
_DETACHED = re.compile(r"\w [.,;:?!](?: |$)")
_ATTACHED = re.compile(r"\w[.,;:?!](?: |$)")


def find_tasks(path: Path) -> dict[str, Path]:
    """File or folder of each of the seven."""
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
    """`tokenized` where marks mostly stand alone, with a blank before them; otherwise `raw`."""
    texts = [*pairs.first, *pairs.second]
    detached = sum(_DETACHED.search(text) is not None for text in texts)
    return "tokenized" if detached > sum(_ATTACHED.search(text) is not None for text in texts) else "raw"


def load(source: Source) -> Task:
    """All seven."""
    path = source.need_path()
    pairs = {
        task: read_sick(place) if task == "SICK-R" else read_sts(place) for task, place in find_tasks(path).items()
    }
    return Task(lambda encoder: measure_all(pairs, encoder.texts))


def measure_all(tasks: Mapping[str, ScoredPairs], encode: TextEncoder) -> Measured:
    """Spearman of each task, and their mean."""
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


def _files(path: Path, split: str | None) -> Sequence[Path]:
    return sorted({file for place in find_tasks(path).values() for file in _inside(place)})


def _inside(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for file in place.iterdir() if file.name.startswith("STS.") or file.name in SICK_FILES]


STS7 = Benchmark(
    title="Seven STS tasks",
    metrics=(Metric("spearman", "Spearman, mean of seven", headline=True, by_part=True),),
    load=load,
    files=lambda path, split: list(_files(path, split)),
    task="sts7",
    mteb_parts=True,
    hub_task="sentence-similarity",
)
