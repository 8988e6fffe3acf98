"""A query and its paraphrase: reading pairs and hard negatives, and the figures against a plain loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.base import Captions
from paraclip_core.evaluation.benchmarks import Source, Stored
from paraclip_core.evaluation.benchmarks import query_pairs as family
from paraclip_core.evaluation.intervals import Interval, Sample, delta_interval
from paraclip_core.evaluation.options import BenchmarkOptions, GateRule
from paraclip_core.evaluation.prepare import prepare
from paraclip_core.evaluation.rows import Outcome, compared_rows
from paraclip_core.evaluation.verdict.finding import line
from paraclip_core.report.plots import margin_plot
from tests.kit.fake_encoder import WordEncoder, word_pool
from tests.kit.verdicts import judged

WORDS = [f"{a}_{b}" for a in ("red", "blue", "green", "old") for b in ("dog", "cat", "car", "boat", "tree")]
CSV = """query,paraphrased_query,hard_negative
red dog,dog red,blue dog
red dog,red old dog,green car
green car,car of green,green boat
old tree,,old boat
blue boat,boat blue cat,
"""


def stored(encoder: WordEncoder, captions: Sequence[str] = WORDS) -> Stored:
    return Stored(Captions(WORDS, captions, "val"), lambda ids: word_pool(list(dict.fromkeys(ids)), encoder))


def options(path: Path | None) -> BenchmarkOptions:
    return BenchmarkOptions(name="w", kind="query_pairs", path=path and str(path))


def test_a_file_with_hard_negatives_against_a_plain_loop(tmp_path: Path) -> None:
    (file := tmp_path / "own.csv").write_text(CSV)
    encoder = WordEncoder()
    measured = prepare(options(file), file, stored(encoder)).measure(encoder)
    gallery = encoder.texts([word.replace("_", " ") for word in WORDS]).astype(np.float16).astype(np.float32)

    def overlap(one: str, other: str) -> float:
        lists = []
        for text in (one, other):
            scores = (encoder.texts([text]) @ gallery.T)[0]
            lists.append(sorted(range(len(WORDS)), key=lambda row: (-scores[row], row))[:10])
        return sum(len({*lists[0][:d]} & {*lists[1][:d]}) / d for d in range(1, 11)) / 10

    rows = [line.split(",") for line in CSV.splitlines()[1:]]
    pairs = [overlap(query, paraphrased) for query, paraphrased, _ in rows if paraphrased]
    hard_negatives = [overlap(query, hard_negative) for query, _, hard_negative in rows if hard_negative]
    assert measured.metrics["ao@10"] == pytest.approx(100 * np.mean(pairs))
    assert measured.metrics["hard_negative_ao@10"] == pytest.approx(100 * np.mean(hard_negatives))
    assert measured.metrics["margin"] == pytest.approx(100 * (np.mean(pairs) - np.mean(hard_negatives)))
    assert {name: measured.notes[name] for name in ("images", "pairs", "hard_negatives")} == {
        "images": 20,
        "pairs": 4,
        "hard_negatives": 4,
    }


def test_without_hard_negatives_the_margin_is_unknown(tmp_path: Path) -> None:
    (file := tmp_path / "own.jsonl").write_text(
        "\n".join(json.dumps({"query": query, "paraphrased_query": f"a {query}"}) for query in ("red dog", "old car"))
    )
    encoder = WordEncoder()
    measured = prepare(options(file), file, stored(encoder)).measure(encoder)
    assert set(measured.samples) == {"ao@10", "js@10"}
    assert "unknown" in measured.notes["margin"]


def test_the_margin_needs_paraphrases_of_two_queries(tmp_path: Path) -> None:
    rows = CSV.replace("green car,car of green,", "green car,,").replace("blue boat,boat blue cat,\n", "")
    (file := tmp_path / "own.csv").write_text(rows)
    encoder = WordEncoder()
    outcome = prepare(options(file), file, stored(encoder)).measure(encoder)
    assert set(outcome.samples) == {"hard_negative_ao@10", "hard_negative_js@10"}
    assert "of two queries each" in outcome.notes["margin"]
    assert margin_plot(compared_rows([Outcome("w", "query_pairs", outcome, outcome)])) is None


def test_a_margins_interval_is_that_of_two_means_of_each_draw() -> None:
    rng = np.random.default_rng(0)
    # Unequal numbers of both kinds, which differ from query to query.
    queries = np.repeat(np.arange(100), rng.integers(1, 6, 100))
    hard_negative = rng.random(len(queries)) < 0.3
    base, gain = rng.random((2, len(queries)))

    def interval(tuned: NDArray[np.float64]) -> Interval:
        before, after = (Sample(family._difference(values, hard_negative), queries) for values in (base, tuned))
        return delta_interval(before, after)

    shifted = interval(base + 0.1)
    assert (shifted.delta, shifted.low, shifted.high) == pytest.approx((0, 0, 0), abs=1e-12)
    deltas = []
    for _ in range(2000):
        drawn = np.concatenate([np.flatnonzero(queries == query) for query in rng.integers(0, 100, 100)])
        kind = hard_negative[drawn]
        deltas.append(gain[drawn][~kind].mean() - gain[drawn][kind].mean())
    ours = interval(base + gain)
    assert ours.delta == pytest.approx(gain[~hard_negative].mean() - gain[hard_negative].mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(deltas, [0.025, 0.975])), abs=0.005)


class Collapsed(WordEncoder):
    """Embeds all texts alike."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return super().texts(["dog"] * len(texts))


def test_a_collapsed_encoder_has_no_margin_and_is_held(tmp_path: Path) -> None:
    (file := tmp_path / "own.csv").write_text(CSV)
    base, collapsed = WordEncoder(), Collapsed()
    task = prepare(options(file), file, stored(base))
    outcome = Outcome("w", "query_pairs", task.measure(base), task.measure(collapsed))
    alike = ("ao@10", "js@10", "hard_negative_ao@10", "hard_negative_js@10")
    assert outcome.tuned.metrics == {**dict.fromkeys(alike, 100), "margin": 0}
    gate = GateRule(metric="query_pairs/ao@10", max_drop={"query_pairs/margin": 1})
    comparison = judged(outcome, gate=gate)
    assert comparison.verdict == "hold"
    assert "hard negatives of w fell by" in line(comparison.findings)


def test_agreement_with_hard_negatives_is_judged_by_the_margin_alone(tmp_path: Path) -> None:
    (file := tmp_path / "own.csv").write_text(CSV)
    base = WordEncoder()
    task = prepare(options(file), file, stored(base))
    outcome = Outcome("w", "query_pairs", task.measure(base), task.measure(Collapsed()))
    assert "w hard negative" not in line(judged(outcome).findings)


def test_rules_make_pairs_of_captions_by_class() -> None:
    encoder = WordEncoder()
    captions = [f"a {word.replace('_', ' ')} on the road." for word in WORDS]
    measured = prepare(options(None), None, stored(encoder, captions)).measure(encoder)
    assert {name for name in measured.samples if "@10@" in name} == {f"ao@10@{rule}" for rule in family.RULES}
    assert measured.metrics["ao@10@capitals"] == 100
    assert family.RULES["keywords"]("A red dog is lying on the road.") == "red dog lying road"


def test_the_published_files(data_root: Path) -> None:
    folder = data_root / "sts"
    sick, scenes, crepe = map(
        family.read, (folder / "sick", folder / "raw" / "STSB-test.tsv", data_root / "sugarcrepe")
    )
    hard_negatives = [pair for pair in sick if pair.kind == "hard_negative"]
    assert (len(sick), len(hard_negatives)) == (1_909 + 1_459, 1_459) and len(family.distinct(sick)) <= len(sick)
    assert len(scenes) > 50 and not any(pair.kind for pair in scenes)
    assert all(pair.kind == "hard_negative" for pair in crepe) and len(crepe) > 7_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.csv", "query,other\na,b\n"),
        ("own.csv", "caption,paraphrased_query\na,b\na,c\n"),
        ("SICK.txt", "sentence_A\tsentence_B\trelatedness_score\tentailment_label\na\tb\tmuch\tENTAILMENT\n"),
        ("own.jsonl", '{"query": "x", "paraphrased_query": 3.5}'),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((BenchmarkError, InputError), match=str(tmp_path)):
        prepare(options(tmp_path), tmp_path, stored(WordEncoder()))


def test_outside_of_a_run_images_are_named(tmp_path: Path) -> None:
    (file := tmp_path / "own.csv").write_text(CSV)
    with pytest.raises(BenchmarkError, match="option `images`"):
        family.load(Source(file))


def test_too_few_images_are_reported(tmp_path: Path) -> None:
    (file := tmp_path / "own.csv").write_text(CSV)
    encoder = WordEncoder()
    few = Stored(Captions(WORDS, WORDS, "val"), lambda ids: word_pool(list(ids)[:9], encoder))
    with pytest.raises(BenchmarkError, match="9 images"):
        family.load(Source(file, few))
