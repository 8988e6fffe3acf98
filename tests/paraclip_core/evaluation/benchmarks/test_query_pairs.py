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
from paraclip_core.evaluation.options import BenchmarkOptions, GateRule
from paraclip_core.evaluation.pairs import distinct
from paraclip_core.evaluation.prepare import Prepared, prepare
from paraclip_core.evaluation.rows import Outcome
from paraclip_core.evaluation.verdict.finding import line
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


def task_of(path: Path | None, stored: Stored) -> Prepared:
    return prepare(BenchmarkOptions(name="w", kind="query_pairs", path=path and str(path)), path, stored)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (path := tmp_path / "own.csv").write_text(CSV)
    return path


def test_a_file_with_hard_negatives_against_a_plain_loop(file: Path) -> None:
    encoder = WordEncoder()
    measured = task_of(file, stored(encoder)).measure(encoder)
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
    assert [measured.notes[name] for name in ("images", "pairs", "hard_negatives")] == [20, 4, 4]


def test_without_hard_negatives_the_margin_is_unknown(file: Path) -> None:
    file.write_text("query,paraphrased_query\nred dog,a red dog\nold car,a old car\n")
    encoder = WordEncoder()
    measured = task_of(file, stored(encoder)).measure(encoder)
    assert set(measured.samples) == {"ao@10", "js@10", "corrected_ao@10", "unrelated_ao@10"}
    assert "unknown" in measured.notes["margin"]


def test_the_margin_needs_paraphrases_of_two_queries(file: Path) -> None:
    file.write_text(CSV.replace("green car,car of green,", "green car,,").replace("blue boat,boat blue cat,\n", ""))
    encoder = WordEncoder()
    outcome = task_of(file, stored(encoder)).measure(encoder)
    assert set(outcome.samples) == {"hard_negative_ao@10", "hard_negative_js@10"}
    assert "of two queries each" in outcome.notes["margin"]


class Collapsed(WordEncoder):
    """Embeds all texts alike."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return super().texts(["dog"] * len(texts))


def test_a_collapsed_encoder_has_no_margin_and_is_held(file: Path) -> None:
    base = WordEncoder()
    task = task_of(file, stored(base))
    outcome = Outcome("w", "query_pairs", task.measure(base), task.measure(Collapsed()))
    alike = ("ao@10", "js@10", "unrelated_ao@10", "hard_negative_ao@10", "hard_negative_js@10")
    assert outcome.tuned.metrics == {**dict.fromkeys(alike, 100), "margin": 0, "corrected_ao@10": 0}
    gate = GateRule(metric="query_pairs/ao@10", max_drop={"query_pairs/margin": 1})
    comparison = judged(outcome, gate=gate)
    assert comparison.verdict == "hold"
    assert "hard negatives of w fell by" in line(comparison.findings)
    # Agreement with hard negatives is judged by the margin alone.
    assert "w hard negative" not in line(judged(outcome).findings)


def test_rules_make_pairs_of_captions_by_class() -> None:
    encoder = WordEncoder()
    captions = [f"a {word.replace('_', ' ')} on the road." for word in WORDS]
    measured = task_of(None, stored(encoder, captions)).measure(encoder)
    of_rules = {name for name in measured.samples if name.startswith("ao@10@")}
    assert of_rules == {f"ao@10@{rule}" for rule in family.RULES}
    # The captions' images are known.
    assert "paraphrased_query_text_to_image_recall@10@typo" in measured.samples
    assert measured.metrics["ao@10@capitals"] == 100
    assert family.RULES["keywords"]("A red dog is lying on the road.") == "red dog lying road"


def test_the_published_files(data_root: Path) -> None:
    folder = data_root / "sts"
    sick, scenes, crepe = map(
        family.read, (folder / "sick", folder / "raw" / "STSB-test.tsv", data_root / "sugarcrepe")
    )
    hard_negatives = [pair for pair in sick if pair.hard_negative]
    assert (len(sick), len(hard_negatives)) == (1_909 + 1_459, 1_459) and len(distinct(sick)) <= len(sick)
    assert len(scenes) > 50 and not any(pair.hard_negative for pair in scenes)
    assert all(pair.hard_negative and pair.image for pair in crepe) and len(crepe) > 7_000
    assert {pair.part for pair in crepe} == {
        "add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"
    }  # fmt: skip


def test_captions_with_a_paraphrase_a_query_and_a_hard_negative_of_known_images(tmp_path: Path) -> None:
    rows = [
        {"image": word, "caption": f"a {word.replace('_', ' ')}", "paraphrase": f"{word.split('_')[1]} on a road",
         "query": word.split("_")[1], "hard_negative": f"a {word.replace('_', ' ')} and tree"}
        for word in WORDS
    ]  # fmt: skip
    (file := tmp_path / "rewordings.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encoder = WordEncoder()
    measured = task_of(file, stored(encoder)).measure(encoder)
    gallery = encoder.texts([word.replace("_", " ") for word in WORDS]).astype(np.float16).astype(np.float32)

    def cosine(text: str, row: int) -> float:
        return float(encoder.texts([text])[0] @ gallery[row])

    def found(text: str, row: int) -> bool:
        return sum(cosine(text, other) > cosine(text, row) for other in range(len(WORDS))) < 10

    prefers = [cosine(row["caption"], number) > cosine(row["hard_negative"], number) for number, row in enumerate(rows)]
    assert measured.metrics["image_prefers_query"] == pytest.approx(100 * np.mean(prefers))
    for part in ("paraphrase", "query"):
        name = f"paraphrased_query_text_to_image_recall@10@{part}"
        expected = np.mean([found(row[part], number) for number, row in enumerate(rows)])
        assert measured.metrics[name] == pytest.approx(100 * expected)
        assert {f"ao@10@{part}", f"corrected_ao@10@{part}"} < set(measured.samples)


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
        task_of(tmp_path, stored(WordEncoder()))


def test_outside_of_a_run_images_are_named_and_too_few_are_reported(file: Path) -> None:
    with pytest.raises(BenchmarkError, match="option `images`"):
        family.load(Source(file))
    few = Stored(Captions(WORDS, WORDS, "val"), lambda ids: word_pool(list(ids)[:9], WordEncoder()))
    with pytest.raises(BenchmarkError, match="9 images"):
        family.load(Source(file, few))
