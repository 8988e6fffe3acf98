"""Two real models on published benchmarks, outside any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError, ModelError
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import parse_benchmark
from paraclip_core.evaluation.run import Evaluation, compare_models


def compared(base: str, tuned: str, benchmarks: list[BenchmarkOptions], **options: Any) -> Evaluation:
    return compare_models({"base": base, "tuned": tuned}, benchmarks, **options).evaluations["tuned"]


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


def test_absent_benchmarks_and_models(tmp_path: Path, models: tuple[str, str], data_root: Path) -> None:
    gone = BenchmarkOptions(name="gone", kind="sts", path="gone.tsv")
    with pytest.raises(BenchmarkError, match=r"benchmark 'gone': .*gone\.tsv does not exist"):
        compared("unused", "unused", [gone])
    with pytest.raises(ModelError, match="nowhere"):
        compared(str(tmp_path / "nowhere"), "x", [parse_benchmark(f"sick={data_root}/sts/sick")])
    with pytest.raises(BenchmarkError, match="needs a path"):
        compared("unused", "unused", [BenchmarkOptions(name="x", kind="sick")])
    with pytest.raises(BenchmarkError, match="no ingested split outside a run"):
        compared("unused", "unused", [BenchmarkOptions(name="x", kind="retrieval")])
    both = [gone.model_copy(update={"optional": True}), parse_benchmark(f"sick={data_root}/sts/sick")]
    evaluation = compared(*models, both, device="cpu")
    assert "gone was left out: its path is absent" in evaluation.comparison.notes
    assert [outcome.benchmark for outcome in evaluation.outcomes] == ["sick"]
