"""The seven STS tasks: figures and the mean's interval against scipy, layouts, and both variants of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_encoder import WordEncoder
from scipy import stats

from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks.sts import TASKS, ScoredPairs, find_tasks, measure_all, text_variant
from paraclip_core.evaluation.intervals import delta_interval
from paraclip_core.evaluation.results import from_table, to_table
from paraclip_core.evaluation.run import prepare, source_files

BENCHMARK = BenchmarkOptions(name="sts7", kind="sts7", path=".")
WORDS = ("dog", "cat", "sea", "man", "red", "old", "tree", "car")


def pairs(seed: int, count: int) -> ScoredPairs:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(2 * count)]
    return ScoredPairs(texts[:count], texts[count:], rng.integers(0, 6, count).astype(float).tolist())


def senteval(folder: Path) -> None:
    """SentEval's folder, its texts with blanks before marks."""
    for year in range(12, 17):
        place = folder / "downstream" / "STS" / f"STS{year}-en-test"
        place.mkdir(parents=True)
        (place / "STS.input.news.txt").write_text("".join(f"a dog {n} .\ta cat {n % 3} .\n" for n in range(year)))
        (place / "STS.gs.news.txt").write_text("".join(f"{n % 5}\n" for n in range(year)))
    place = folder / "downstream" / "STS" / "STSBenchmark"
    place.mkdir()
    (place / "sts-test.csv").write_text("".join(f"g\tf\t1\t{n}\t{n % 5}\tdog {n}.\tcat.\n" for n in range(9)))
    place = folder / "downstream" / "SICK"
    place.mkdir()
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    (place / "SICK_test_annotated.txt").write_text(
        header + "".join(f"{n}\ta man {n}\ta man\t{n % 4 + 1}.5\tNEUTRAL\n" for n in range(8))
    )


def test_each_task_and_their_mean_equal_scipys() -> None:
    tasks = {task: pairs(seed, 20 + seed) for seed, task in enumerate(TASKS)}
    encoder = WordEncoder()
    measured = measure_all(tasks, encoder.texts)
    expected = {}
    for task, scored in tasks.items():
        a, b = encoder.texts(scored.first).astype(float), encoder.texts(scored.second)
        expected[task] = 100 * stats.spearmanr((a * b).sum(1), scored.gold).statistic  # pyright: ignore
    assert {task: measured.metrics[f"spearman@{task}"] for task in TASKS} == pytest.approx(expected, abs=1e-9)
    assert measured.metrics["spearman"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
    assert next(iter(measured.metrics)) == "spearman"


def test_the_means_interval_is_a_bootstrap_within_each_task() -> None:
    tasks = {task: pairs(seed, 30) for seed, task in enumerate(TASKS)}
    base, tuned = (measure_all(tasks, WordEncoder(seed=seed).texts) for seed in (0, 1))
    found = delta_interval(base.samples["spearman"], tuned.samples["spearman"], resamples=1000, confidence=0.9, seed=3)
    rng, deltas = np.random.default_rng(11), []
    for _ in range(400):
        parts = []
        for task in TASKS:
            one, other = base.samples[f"spearman@{task}"], tuned.samples[f"spearman@{task}"]
            rows = rng.integers(0, 30, 30)
            gold = stats.rankdata(pairs(TASKS.index(task), 30).gold)[rows]
            ranks = [np.corrcoef(stats.rankdata(s.values[rows]), stats.rankdata(gold))[0, 1] for s in (one, other)]
            parts.append(ranks[1] - ranks[0])
        deltas.append(np.mean(parts))
    assert found.delta == pytest.approx((tuned.metrics["spearman"] - base.metrics["spearman"]) / 100)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(deltas, [0.05, 0.95])), abs=0.03)
    assert found.clusters == 210


def test_the_table_of_samples_keeps_the_mean() -> None:
    tasks = {task: pairs(seed, 10) for seed, task in enumerate(TASKS)}
    measured = measure_all(tasks, WordEncoder().texts)
    assert from_table(to_table(measured, measured))[0].metrics == measured.metrics


def test_sentevals_folder_and_its_tokenized_texts(tmp_path: Path) -> None:
    senteval(tmp_path)
    measured = prepare(BENCHMARK, tmp_path).measure(WordEncoder())
    assert measured.notes["texts"] == dict.fromkeys(TASKS[:5], "tokenized") | {"STSBenchmark": "raw", "SICK-R": "raw"}
    assert measured.notes["pairs"] == {"STS12": 12, "STS13": 13, "STS14": 14, "STS15": 15, "STS16": 16} | {
        "STSBenchmark": 9,
        "SICK-R": 8,
    }
    names = {file.name for file in source_files("sts7", tmp_path)}
    assert names == {"STS.input.news.txt", "STS.gs.news.txt", "sts-test.csv", "SICK_test_annotated.txt"}


def test_what_is_missing_is_named_at_once(tmp_path: Path, data_root: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"lacks STS12, STS14, STS15, STS16; expected SentEval's folder"):
        prepare(BENCHMARK, data_root / "sts")
    senteval(tmp_path)
    assert list(find_tasks(tmp_path)) == list(TASKS)


@pytest.mark.parametrize(
    ("texts", "variant"),
    [(["a dog runs .", "so , it is"], "tokenized"), (["a dog runs.", "so, it is"], "raw"), (["a dog", "it"], "raw")],
)
def test_both_variants_of_texts(texts: list[str], variant: str) -> None:
    assert text_variant(ScoredPairs(texts, texts, [0.0, 1.0])) == variant


def test_real_texts_are_raw(data_root: Path) -> None:
    from paraclip_core.evaluation.benchmarks.sts import read_sts

    assert text_variant(read_sts(data_root / "sts" / "raw" / "STSB-test.tsv")) == "raw"
