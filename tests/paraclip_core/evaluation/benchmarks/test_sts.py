"""STS and SICK: the real files, their traps, and Spearman against scipy."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import sts
from paraclip_core.evaluation.benchmarks.sts import TASKS, ScoredPairs, find_tasks, measure_all, text_variant
from paraclip_core.evaluation.intervals import delta_interval
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.outcomes import from_table, to_table
from paraclip_core.evaluation.prepare import prepare, source_files
from tests.kit.fake_encoder import WordEncoder


def expected_spearman(pairs: ScoredPairs) -> float:
    """By scipy, in percent, for the cosines of a `WordEncoder`."""
    first, second = WordEncoder().texts(pairs.first), WordEncoder().texts(pairs.second)
    correlation: Any = stats.spearmanr((first.astype(float) * second).sum(1), pairs.gold)
    return 100 * float(correlation.statistic)


@pytest.mark.parametrize(("name", "count"), [("STSB-test", 1379), ("STS13", 1500)])
def test_real_sts(data_root: Path, name: str, count: int) -> None:
    path = data_root / "sts" / "raw" / f"{name}.tsv"
    pairs = sts.read_sts(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(pairs.gold) == len(rows) == count
    assert pairs.first == [row["sentence1"].strip() for row in rows]
    measured = sts.measure(pairs, WordEncoder().texts)
    assert measured.metrics["spearman"] == pytest.approx(expected_spearman(pairs), abs=1e-9)
    assert measured.notes["pairs"] == count
    assert list(measured.metrics) == [sts.STS.metrics[0].name] == [sts.SICK.metrics[0].name]


def test_real_sick(data_root: Path) -> None:
    pairs = sts.read_sick(data_root / "sts" / "sick")
    assert len(pairs.gold) == 4927
    assert pairs.first[0] == "There is no boy playing outdoors and there is no man smiling"
    assert (min(pairs.gold), max(pairs.gold)) == (1.0, 5.0)
    spearman = sts.measure(pairs, WordEncoder().texts).metrics["spearman"]
    assert spearman == pytest.approx(expected_spearman(pairs), abs=1e-9)


def test_the_single_sick_file_the_headerless_one_and_absent_ones(tmp_path: Path) -> None:
    header = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set"
    rows = [f"{i}\ta {i}\tb {i}\tNEUTRAL\t{i}.5\t{'TEST' if i % 2 else 'TRAIN'}" for i in range(6)]
    (tmp_path / "SICK.txt").write_text("\r\n".join([header, *rows]))
    assert sts.read_sick(tmp_path).gold == [1.5, 3.5, 5.5]
    path = tmp_path / "sts-test.csv"
    path.write_text("g\tf\t2012\t1\t2.5\tone\ttwo\ng\tf\t2012\t2\t3.5\tthree\tfour\tlicense\n")
    assert sts.read_sts(path) == sts.ScoredPairs(["one", "three"], ["two", "four"], [2.5, 3.5])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkError, match=r"no STS\.input"):
        sts.read_sts(tmp_path / "empty")
    with pytest.raises(BenchmarkError, match="SICK_test_annotated"):
        sts.read_sick(tmp_path / "empty")


def test_quotes_blanks_and_odd_line_ends_are_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(
        'id\tscore\tsentence1\tsentence2\n1\t\tno\tscore\n2\t3\t"open\tb\u2028c\n3\t4\ta\tb\n', encoding="utf-8"
    )
    pairs = sts.read_sts(path)
    assert (pairs.gold, pairs.without_score) == ([3.0, 4.0], 1)
    assert (pairs.first[0], pairs.second[0]) == ('"open', "b\u2028c")


def test_semevals_folder_is_one_list_with_blanks_left_out(tmp_path: Path) -> None:
    for subset, scores in (("A", "1\n\n"), ("B", "5\n")):
        lines = [f"{subset}{i} left\t{subset}{i} right" for i in range(scores.count("\n"))]
        (tmp_path / f"STS.input.{subset}.txt").write_text("\n".join(lines) + "\n")
        (tmp_path / f"STS.gs.{subset}.txt").write_text(scores)
    pairs = sts.read_sts(tmp_path)
    assert (pairs.first, pairs.gold, pairs.without_score) == (["A0 left", "B0 left"], [1.0, 5.0], 1)
    (tmp_path / "STS.gs.B.txt").write_text("5\n4\n")
    with pytest.raises(BenchmarkError, match=r"gs\.B\.txt has 2 lines, expected 1"):
        sts.read_sts(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n1\t2\n", "line 1: .*score, sentence1, sentence2"),
        ("score\tsentence1\tsentence2\n1\tx\n", "line 2: 2 fields, expected 3"),
        ("score\tsentence1\tsentence2\nlots\tx\ty\n", "line 2: score 'lots', expected a number"),
        ("score\tsentence1\tsentence2\nnan\tx\ty\n", "line 2: score 'nan', expected a number"),
        ("score\tsentence1\tsentence2\n1\tcaf\udce9\ty\n", "not UTF-8"),
        ("", "is empty"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(BenchmarkError, match=message) as caught:
        sts.read_sts(path)
    assert str(path) in str(caught.value)


HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tSemEval_set\n"


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [
        ("sts", "dev.tsv", "score\tsentence1\tsentence2\n\ta\tb\n1\tc\td\n", "1 pairs with a score and 1 with a"),
        ("sts", "sts-test.csv", "g\tf\t2012\t1\t2.5\tone\ttwo\n", "1 pairs with a score and 0 with a"),
        ("sick", "SICK.txt", f"{HEADER}1\ta\tb\t4\tTRAIN\n2\tc\td\t3\tTEST\n", "1 TEST pairs with a score and 0"),
    ],
)
def test_fewer_than_two_scored_pairs_are_refused_at_once(
    tmp_path: Path, kind: str, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BenchmarkError, match=rf"{name} has {message}.*; expected at least two .* take the published"):
        prepare(BenchmarkOptions(name="x", kind=kind, path=name), tmp_path / name)


@pytest.mark.parametrize("task", TASKS)
def test_each_of_the_seven_needs_two_scored_pairs(tmp_path: Path, task: str) -> None:
    senteval(tmp_path)
    place = find_tasks(tmp_path)[task]
    if task == "SICK-R":
        (file := place / "SICK_test_annotated.txt").write_text(HEADER)
    elif task == "STSBenchmark":
        (file := place).write_text("g\tf\t1\t2\t3\tdog.\tcat.\n")
    else:
        (place / "STS.gs.news.txt").write_text("\n" * len((place / "STS.gs.news.txt").read_text().splitlines()))
        file = place
    with pytest.raises(BenchmarkError, match=rf"{re.escape(str(file))} has [01] .*pairs with a score"):
        prepare(BENCHMARK, tmp_path)


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
    measured = measure_all(tasks, WordEncoder().texts)
    expected = {task: expected_spearman(scored) for task, scored in tasks.items()}
    assert {task: measured.metrics[f"spearman@{task}"] for task in TASKS} == pytest.approx(expected, abs=1e-9)
    assert measured.metrics["spearman"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
    assert next(iter(measured.metrics)) == "spearman"
    assert from_table(to_table(measured, measured))[0].metrics == measured.metrics


def test_the_means_interval_is_a_bootstrap_within_each_task() -> None:
    tasks = {task: pairs(seed, 30) for seed, task in enumerate(TASKS)}
    base, tuned = (measure_all(tasks, WordEncoder(seed=seed).texts) for seed in (0, 1))
    interval = delta_interval(
        base.samples["spearman"], tuned.samples["spearman"], resamples=1000, confidence=0.9, seed=3
    )
    rng, deltas = np.random.default_rng(11), np.zeros(400)
    for task, scored in tasks.items():
        one, other = base.samples[f"spearman@{task}"], tuned.samples[f"spearman@{task}"]
        # Pairs that share a text are drawn together.
        clusters = [np.flatnonzero(one.clusters == cluster) for cluster in np.unique(one.clusters)]
        for draw in range(len(deltas)):
            rows = np.concatenate([clusters[n] for n in rng.integers(0, len(clusters), len(clusters))])
            gold = stats.rankdata(np.array(scored.gold)[rows])
            ranks = [np.corrcoef(stats.rankdata(s.values[rows]), gold)[0, 1] for s in (one, other)]
            deltas[draw] += (ranks[1] - ranks[0]) / len(TASKS)
    assert interval.delta == pytest.approx((tuned.metrics["spearman"] - base.metrics["spearman"]) / 100)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(deltas, [0.05, 0.95])), abs=0.03)
    assert interval.clusters < 210


def test_sentevals_folder_and_its_tokenized_texts(tmp_path: Path) -> None:
    senteval(tmp_path)
    measured = prepare(BENCHMARK, tmp_path).measure(WordEncoder())
    assert measured.notes["texts"] == dict.fromkeys(TASKS[:5], "tokenized") | {"STSBenchmark": "raw", "SICK-R": "raw"}
    assert measured.notes["pairs"] == dict(zip(TASKS, (12, 13, 14, 15, 16, 9, 8), strict=True))
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
