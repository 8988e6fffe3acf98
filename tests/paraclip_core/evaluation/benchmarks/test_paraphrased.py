"""Paraphrased retrieval: reading pairs, pairing captions, and the figures against a plain loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest

from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.base import Captions
from paraclip_core.evaluation.benchmarks import Stored
from paraclip_core.evaluation.benchmarks import paraphrased as family
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import prepare
from paraclip_core.tables import PER_QUERY
from tests.kit.fake_encoder import WordEncoder, word_pool

WORDS = [f"{a}_{b}" for a in ("red", "blue", "green", "old") for b in ("dog", "cat", "car", "boat", "tree")]
ROWS = [
    {"image_id": "red_dog", "caption": 'a "red" dog', "paraphrased_query": "a scarlet, small dog"},
    {"image_id": "blue_car", "caption": "blue car", "paraphrased_query": "azure automobile on a road"},
]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"paraphrased_queries{suffix}"
    table = pa.Table.from_pylist(ROWS)
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif suffix == ".json":
        path.write_text(json.dumps({str(i): row for i, row in enumerate(ROWS)}))
    elif suffix == ".parquet":
        pq.write_table(table, path)
    else:
        pv.write_csv(table, path, pv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ","))
    return path


def beside_images(folder: Path, pairs: Sequence[str]) -> Path:
    """Pairs of some of the words, beside images of all."""
    (folder / "images").mkdir()
    for word in WORDS:
        (folder / "images" / f"{word}.jpg").touch()
    rows = [
        {"image": f"{word}.jpg", "caption": word.replace("_", " "), "paraphrased_query": f"a {word}"} for word in pairs
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


BENCHMARK = BenchmarkOptions(name="x", kind="paraphrased_retrieval", path="pairs.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".tsv"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    pairs = family.read_pairs(path)
    assert list(zip(pairs.image_ids, pairs.captions, pairs.paraphrased_queries, strict=True)) == [
        tuple(row.values()) for row in ROWS
    ]
    assert family.read_pairs(tmp_path).captions == pairs.captions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.jsonl", '{"image_id": "x", "caption": "y"}'),
        ("pairs.jsonl", '{"image_id": "x", "caption": "  ", "paraphrased_query": "z"}'),
        ("pairs.jsonl", '{"image_id": "x"'),
        ("pairs.json", "3"),
        ("pairs.csv", "image_id,caption,paraphrased_query\nx,y\n"),
        ("pairs.parquet", "PAR1"),
        ("pairs.jsonl", '{"image_id": "x", "caption": "\\ud83d", "paraphrased_query": "z"}'),
        ("pairs.jsonl", ""),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((BenchmarkError, InputError), match=str(tmp_path)):
        family.read_pairs(tmp_path)


def test_ten_pairs_of_five_captions_without_equal_ones() -> None:
    captions = Captions(["i"] * 5 + ["j"] * 2, ["a dog", "b", "c", "d", "e", "Same  words", "same words"], "val")
    pairs = family.pairs_of_captions(captions)
    assert len(pairs.captions) == 10
    assert (pairs.captions[0], pairs.paraphrased_queries[0], pairs.equal) == ("a dog", "b", 1)
    with pytest.raises(BenchmarkError, match="no image of split 'val' has two captions"):
        family.pairs_of_captions(Captions(["i"], ["a"], "val"))
    pairs = family.pairs_of_captions(Captions(["i", "i"], ["A dog", "a  dog"], "val"))
    with pytest.raises(BenchmarkError, match=r"all 1 pairs \(val\) repeat one text, .* expected a caption"):
        family.within(pairs, word_pool(["i"], WordEncoder()))
    encoder = WordEncoder()
    pool = word_pool(WORDS[:7], encoder)
    with pytest.raises(BenchmarkError, match="at least 10 images, got 7"):
        family.measure(family.Pairs(WORDS[:1], ["a"], ["b"], "val"), pool, encoder)


def test_figures_against_a_plain_loop() -> None:
    encoder = WordEncoder()
    pool = word_pool(WORDS, encoder)
    pairs = family.Pairs(
        WORDS, [f"a {w}".replace("_", " ") for w in WORDS], [w.replace("_", " by ") for w in WORDS], "val"
    )
    measured = family.measure(pairs, pool, encoder)
    images = pool.features(encoder)
    overlap, union, hits = [], [], []
    for row, (caption, paraphrased) in enumerate(zip(pairs.captions, pairs.paraphrased_queries, strict=True)):
        a, b = (np.argsort(-(encoder.texts([t]) @ images.T)[0])[:10].tolist() for t in (caption, paraphrased))
        overlap.append(sum(len(set(a[:d]) & set(b[:d])) / d for d in range(1, 11)) / 10)
        union.append(len(set(a) & set(b)) / len(set(a) | set(b)))
        hits.append(row in b[:5])
    assert measured.metrics["ao@10"] == pytest.approx(100 * np.mean(overlap))
    assert measured.metrics["js@10"] == pytest.approx(100 * np.mean(union))
    assert measured.metrics["paraphrased_query_text_to_image_recall@5"] == pytest.approx(100 * np.mean(hits))
    assert list(measured.metrics) == [metric.name for metric in family.PARAPHRASED_RETRIEVAL.metrics]


def test_the_table_of_queries() -> None:
    encoder, other = WordEncoder(), WordEncoder(seed=1)
    pool = word_pool(WORDS, encoder)
    pairs = family.Pairs(["red_dog", "gone", "red_dog"], ["red dog", "x", "dog"], ["old dog", "y", "red boat"], "val")
    pairs = family.within(pairs, pool)
    assert pairs.without_image == 1
    base, tuned = family.measure(pairs, pool, encoder), family.measure(pairs, pool, other)
    table = family.per_query(pairs, pool, base, tuned)
    table.validate(full=True)
    assert table.schema == PER_QUERY
    assert table["group"].to_pylist() == ["red_dog", "red_dog"]
    expected = [[pool.ids[row] for row in ranked] for ranked in base.ranked["paraphrased_query"]]
    assert table["base_paraphrased_top"].to_pylist() == expected
    # All pairs are of one image, so there is no interval.
    assert not base.samples
    with pytest.raises(BenchmarkError, match=r"none of 1 pairs .* first missing: 'gone'"):
        family.within(family.Pairs(["gone"], ["a"], ["b"], "val"), pool)


def test_all_images_beside_the_pairs_are_searched(tmp_path: Path) -> None:
    file = beside_images(tmp_path, WORDS[:2])
    with pytest.raises(BenchmarkError, match="its pool has 2 images"):
        prepare(BENCHMARK, file)
    every = BENCHMARK.model_copy(update={"options": {"pool": "all"}})
    measured = prepare(every, file).measure(WordEncoder())
    assert (measured.notes["images"], measured.notes["pairs"]) == (len(WORDS), 2)
    assert measured.metrics["caption_text_to_image_recall@1"] == 100
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(BenchmarkError, match="`pool: all` searches every image"):
        prepare(every, file)
    named = prepare(every, file, images=tmp_path / "elsewhere").measure(WordEncoder())
    assert named.notes["images"] == len(WORDS)


def test_a_runs_images_are_searched_only_if_those_of_most_pairs_are_among_them(tmp_path: Path) -> None:
    file, names = beside_images(tmp_path, WORDS), [f"{word}.jpg" for word in WORDS]

    def searched(ingested: list[str]) -> tuple[int, int, int]:
        """Images, pairs and images that were encoded, in a run that ingested these."""
        encoder = WordEncoder()
        captions = Captions(ingested, ["a dog"] * len(ingested), "val")
        stored = Stored(captions, lambda ids: word_pool([i for i in dict.fromkeys(ids) if i in ingested], encoder))
        notes = prepare(BENCHMARK, file, stored).measure(encoder).notes
        return notes["images"], notes["pairs"], encoder.encoded_images

    assert searched([*names, "sea.jpg"]) == (len(WORDS) + 1, len(WORDS), 0)
    # One could not be read.
    assert searched([*names[1:], "sea.jpg"]) == (len(WORDS), len(WORDS) - 1, 0)
    # Photographs of one's own that have the names of a few.
    few = [*names[:6], *(f"own-{number}.jpg" for number in range(6))]
    assert searched(few) == (len(WORDS), len(WORDS), len(WORDS))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert searched(few) == (12, 6, 0)
