"""Queries of a log over an index: agreement and clicked images against plain loops, hard negatives, stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paraclip.storage.parquet import write_table
from paraclip_core import tables
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions
from paraclip_core.evaluation.benchmarks import Stored
from paraclip_core.evaluation.benchmarks.query_log import hard_negatives
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import prepare
from paraclip_core.evaluation.rows import Outcome
from paraclip_core.evaluation.verdict.finding import notes
from tests.kit.fake_encoder import WordEncoder, word_pool
from tests.kit.verdicts import judged

IMAGES = [f"{a}_{b}" for a in ("red", "blue", "green", "old") for b in ("dog", "cat", "car", "boat", "tree")]
PAIRS = [("red dog", "dog red one", "red_dog"), ("blue car", "a car blue", None), ("old boat", "boat", "old_boat"),
         ("green tree", "tree and cat", "blue_cat")]  # fmt: skip


def written(folder: Path, pairs: list[tuple[str, str, str | None]]) -> Path:
    def row(query: str, other: str, image: str | None) -> dict[str, Any]:
        named = {field.name: b"0" * 16 for field in tables.LOG_QUERIES if field.type == pa.binary(16)}
        texts = {"caption": query, "paraphrase_1": other, "paraphrased_query": other, "license": "unknown"}
        return named | texts | {"image_id": image, "count": 3, "frequency": "head" if "r" in query else "tail"}

    table = pa.Table.from_pylist([row(*pair) for pair in pairs], schema=tables.LOG_QUERIES)
    write_table(folder / "queries.parquet", table)
    return folder / "queries.parquet"


def task_of(path: Path, encoder: WordEncoder) -> Any:
    stored = Stored(Captions([], [], "val"), lambda ids: word_pool(IMAGES, encoder))
    return prepare(BenchmarkOptions(name="log", kind="query_log"), path, stored)


def test_figures_against_a_plain_loop(tmp_path: Path) -> None:
    encoder = WordEncoder()
    task = task_of(written(tmp_path, PAIRS), encoder)
    metrics = task.measure(encoder).metrics

    def ranking(text: str) -> list[str]:
        scores = encoder.texts([text])[0] @ encoder.texts([name.replace("_", " ") for name in IMAGES]).T
        return [IMAGES[place] for place in np.argsort(-scores, kind="stable")]

    ranks = [ranking(other).index(image) + 1 for _, other, image in PAIRS if image is not None]
    assert metrics["paraphrased_query_mrr@10"] == pytest.approx(
        100 * np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])
    )
    assert metrics["paraphrased_query_text_to_image_recall@5"] == pytest.approx(100 * np.mean([r <= 5 for r in ranks]))
    overlaps = [
        np.mean([len({*ranking(query)[:d]} & {*ranking(other)[:d]}) / d for d in range(1, 11)])
        for query, other, _ in PAIRS
    ]
    assert metrics["ao@10"] == pytest.approx(100 * np.mean(overlaps))
    assert list(task.task.queries.groups) == ["head" if "r" in query else "tail" for query, _, _ in PAIRS]


def test_without_clicks_there_is_no_recall_and_the_gate_goes_by_agreement(tmp_path: Path) -> None:
    encoder = WordEncoder()
    task = task_of(written(tmp_path, [(query, other, None) for query, other, _ in PAIRS]), encoder)
    measured = task.measure(encoder)
    assert not [name for name in measured.metrics if "recall" in name or "mrr" in name]
    comparison = judged(Outcome("log", "query_log", measured, measured))
    shown = notes(comparison.findings)
    assert any("query_log/corrected_ao@10 stands in for the gate's" in note for note in shown)
    assert any("retrieval/text_to_image_recall@10 was not applied" in note for note in shown)


def test_hard_negatives_mean_something_else() -> None:
    queries = ["a dog", "red car", "the old boat", "car", "blue car"]
    others = [pair.other for pair in hard_negatives(queries)]
    assert others == ["a dog and car", "red car and boat", "the old boat and car", "car and dog", "blue car and dog"]
    assert all(other.casefold() != query.casefold() for query, other in zip(queries, others, strict=True))


def test_a_single_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="1 queries have a paraphrase"):
        task_of(written(tmp_path, PAIRS[:1]), WordEncoder())
