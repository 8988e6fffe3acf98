"""Two real models on published benchmarks, outside any run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError, ModelError
from paraclip_core.evaluation import encoder, run
from paraclip_core.evaluation.base import Measured, Queries, plain_queries
from paraclip_core.evaluation.benchmarks import Task
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import Prepared, parse_benchmark
from paraclip_core.evaluation.run import Evaluation, changed_results, compare_models
from paraclip_core.evaluation.verdict.finding import notes
from tests.kit.fake_encoder import WordEncoder, word_pool


def compared(base: str, tuned: str, benchmarks: list[BenchmarkOptions], **options: Any) -> Evaluation:
    return compare_models({"base": base, "tuned": tuned}, benchmarks, **options)["tuned"]


@pytest.fixture
def mini(data_root: Path, tmp_path: Path) -> Path:
    for name in ("coco_val2017_mini.tar", "coco_val2017_mini.jsonl"):
        (tmp_path / name).symlink_to(data_root / "coco" / name)
    return tmp_path / "coco_val2017_mini.jsonl"


def test_retrieval_equals_stock_open_clip(models: tuple[str, str], mini: Path) -> None:
    evaluation = compared(*models, [parse_benchmark(f"coco={mini}")], device="cpu")
    rows = [json.loads(line) for line in mini.read_text().splitlines()]
    scores, owner = stock_scores(models[0], mini, rows)
    for k in (1, 5, 10):
        hits = [owner[t] in np.argsort(-scores[t], kind="stable")[:k] for t in range(len(owner))]
        # Stock keeps image features in float32 and pads texts, so a near tie may turn over.
        measured = evaluation.outcomes[0].base.metrics[f"text_to_image_recall@{k}"]
        assert measured == pytest.approx(100 * np.mean(hits), abs=1.3)
    assert evaluation.comparison.rows[0].metric == "text_to_image_recall@1"
    assert evaluation.comparison.verdict == "hold"


def stock_scores(reference: str, mini: Path, rows: list[dict]) -> tuple[np.ndarray, list[int]]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{reference}")
    with torch.no_grad(), ImageArchive(mini.with_suffix(".tar")) as archive:
        model.eval()
        pixels = torch.stack([preprocess(archive.open(row["image"])) for row in rows])  # pyright: ignore
        texts = open_clip.SimpleTokenizer()([caption for row in rows for caption in row["captions"]])
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)  # pyright: ignore
        features = torch.nn.functional.normalize(model.encode_text(texts), dim=-1)  # pyright: ignore
    owner = [i for i, row in enumerate(rows) for _ in row["captions"]]
    return (features @ images.T).numpy(), owner


WORDS = ("dog", "cat", "sea", "man", "red", "old", "tree", "car")
IMAGES = [f"{a}_{b}_{c}" for a in WORDS for b in WORDS[:3] for c in WORDS[5:]]


def searching(name: str, queries: Queries | None) -> Prepared:
    return Prepared(name, "retrieval", Task(lambda encoder: Measured({}, {}), queries=queries))


def test_changes_are_those_of_queries_with_known_images() -> None:
    base, tuned = WordEncoder(), WordEncoder(seed=1)
    pool = word_pool(IMAGES, base)
    texts = [image.replace("_", " ") for image in IMAGES]
    tasks = [
        searching("texts", None),
        searching("unknown", plain_queries(texts[:9], pool)),
        searching("known", plain_queries(texts, pool, IMAGES)),
        searching("more", plain_queries(texts[:5], pool, IMAGES[:5])),
    ]
    changes, first = changed_results(tasks, base, tuned)
    assert first is not None and first["query"].to_pylist() == list(dict.fromkeys(texts))
    assert changes is not None and (changes.benchmark, changes.queries) == ("known", len(set(texts)))
    # The base finds what an image shows; to the other encoder, words mean something else.
    assert changes.known is not None and changes.known.queries == len(set(texts))
    assert changes.known.left > 0 and changes.known.entered == 0
    unknown, _ = changed_results(tasks[:2], base, tuned)
    assert unknown is not None and unknown.benchmark == "unknown" and unknown.known is None
    assert changed_results(tasks[:1], base, tuned) == (None, None)
    # A user's own log rather than somebody's pairs.
    log = searching("log", replace(plain_queries(texts[:9], pool), groups=["head"] * len(set(texts[:9]))))
    of_log, _ = changed_results([*tasks[:2], log], base, tuned)
    assert of_log is not None and of_log.benchmark == "log"


def test_many_queries_are_sampled_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = WordEncoder(), WordEncoder(seed=1)
    pool = word_pool(IMAGES, base)
    texts = [f"{image} {number}" for number, image in enumerate(IMAGES)]
    monkeypatch.setattr(run, "CHURN_QUERIES", 7)
    # Only the last query's image is known.
    queries = Queries(texts, pool, np.array([[len(texts) - 1, len(texts) - 1]]))
    changes, _ = changed_results([searching("known", queries)], base, tuned)
    assert changes is not None and changes.queries == 7 and changes.known is not None and changes.known.queries == 1
    assert {query.query for query in changes.most_changed} <= set(texts) and texts[-1] in {
        query.query for query in changes.most_changed
    }


def test_absent_benchmarks_and_models(tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "pairs.tsv").write_text("score\tsentence1\tsentence2\n1\ta\tb\n2\tc\td\n3\te\tf\n")
    there = parse_benchmark(f"pairs:sts={file}")
    gone = BenchmarkOptions(name="gone", kind="sts", path="gone.tsv")
    with pytest.raises(BenchmarkError, match=r"benchmark 'gone': .*gone\.tsv does not exist"):
        compared("unused", "unused", [gone])
    with pytest.raises(ModelError, match="nowhere"):
        compared(str(tmp_path / "nowhere"), "x", [there])
    with pytest.raises(BenchmarkError, match="needs a path"):
        compared("unused", "unused", [BenchmarkOptions(name="x", kind="sick")])
    with pytest.raises(BenchmarkError, match="no ingested split outside a run"):
        compared("unused", "unused", [BenchmarkOptions(name="x", kind="retrieval")])
    monkeypatch.setattr(encoder, "TEXTS", 2)
    told: list[bool] = []

    def progress(done: int, total: int | None, **facts: Any) -> None:
        told.extend(["eta_seconds" in facts] if "texts" in facts else [])

    optional = gone.model_copy(update={"optional": True})
    evaluation = compared(*models, [optional, there], device="cpu", progress=progress)
    assert told[0] is False and told[-1], "the first block of texts tells nothing of the time that is left"
    assert "gone was left out: its path is absent" in notes(evaluation.comparison.findings)
    assert [outcome.benchmark for outcome in evaluation.outcomes] == ["pairs"]
