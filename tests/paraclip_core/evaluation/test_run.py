"""Two real models on published benchmarks, outside any run."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from paraclip_core.clip.export import save_release
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import ClipModel
from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError, ConfigError, ModelError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.metrics import Sample
from paraclip_core.evaluation.run import (
    Evaluation,
    ModelEncoder,
    Provenance,
    check_names,
    compare_models,
    from_arrays,
    from_table,
    mteb_name,
    parse_benchmark,
    result_json,
    source_files,
    to_arrays,
    to_table,
)
from paraclip_core.tables import SAMPLES


def compared(base: str, tuned: str, benchmarks: list[BenchmarkOptions], **options: Any) -> Evaluation:
    return compare_models({"base": base, "tuned": tuned}, benchmarks, **options).evaluations["tuned"]


@pytest.fixture(scope="module")
def models(small_model: tuple[ClipModel, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    clip, base = small_model
    tuned = deepcopy(clip)
    with torch.no_grad():
        torch.manual_seed(0)
        tuned.model.token_embedding.weight.add_(0.05 * torch.randn_like(clip.model.token_embedding.weight))  # pyright: ignore
    folder = tmp_path_factory.mktemp("models") / "tuned"
    save_release(tuned, folder, "card")
    return base, str(folder)


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


def test_texts_are_encoded_in_blocks(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = ModelEncoder(models[0], "cpu")
    texts = [f"a dog {i}" for i in range(9)]
    whole = candidate.texts(texts)
    monkeypatch.setattr("paraclip_core.evaluation.run.TEXTS", 4)
    np.testing.assert_allclose(candidate.texts(texts), whole, atol=1e-6)
    assert candidate.texts([]).shape == (0, 32)
    assert candidate.tower == ModelEncoder(models[1], "cpu").tower
    base, quick = ModelEncoder(models[0], "cpu"), ModelEncoder(models[0], "cpu")
    quick.clip.model_cfg["quick_gelu"] = True
    assert base.tower != quick.tower


def test_names_on_the_command_line(tmp_path: Path) -> None:
    assert parse_benchmark("stsb=a/b=c.tsv") == BenchmarkOptions(name="stsb", kind="sts", path="a/b=c.tsv")
    assert parse_benchmark("mine:sts=x").kind == "sts"
    assert parse_benchmark("karpathy=x").kind == "retrieval"
    for wrong in ("stsb", "stsb=", "=x", "unheard=x", "a:b=x"):
        with pytest.raises(ConfigError, match="--benchmark"):
            parse_benchmark(wrong)
    with pytest.raises(BenchmarkError, match="does not exist"):
        source_files("sts", tmp_path / "absent")


@pytest.mark.parametrize("names", [("a", "a"), ("../a",), ("",), (".a",), ("a/b",), ("a" * 201,)])
def test_names_must_be_plain_and_distinct(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="name"):
        check_names([BenchmarkOptions(name=name, kind="sts", path="x") for name in names])


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


def test_arrays_there_and_back() -> None:
    gold = Sample(np.arange(4.0), np.arange(4), np.arange(4.0)[::-1])
    before = Measured(
        {"spearman": gold, "ao@10": Sample(np.ones(2), np.arange(2))}, {"a": 1}, {"x": np.eye(2, dtype=int)}
    )
    after = from_arrays(to_arrays(before), {"a": 1})
    assert after.metrics == before.metrics == {"spearman": -100.0, "ao@10": 100.0}
    assert list(after.samples) == list(before.samples)
    np.testing.assert_array_equal(after.ranked["x"], before.ranked["x"])


def test_tables_there_and_back() -> None:
    gold = Sample(np.array([0.1, 0.2, 0.4]), np.arange(3), np.array([3.0, 1.0, 2.0]))
    base = Measured({"spearman": gold, "ao@10": Sample(np.ones(2), np.array([7, 7]))}, {"a": 1})
    other = Sample(np.array([0.3, 0.1, 0.2]), np.arange(3), gold.gold)
    tuned = Measured({"spearman": other, "ao@10": Sample(np.zeros(2), np.array([7, 7]))}, {})
    table = to_table(base, tuned)
    assert table.schema.equals(SAMPLES) and table.num_rows == 5
    for before, after in zip((base, tuned), from_table(table), strict=True):
        assert after.metrics == before.metrics and list(after.samples) == list(before.samples)
        for metric, sample in before.samples.items():
            np.testing.assert_array_equal(after.samples[metric].clusters, sample.clusters)
            assert (after.samples[metric].gold is None) == (sample.gold is None)


def test_published_result_shapes() -> None:
    hits = Sample(np.array([1.0, 0.0, 1.0, 1.0]), np.arange(4))
    result = result_json(
        "retrieval", "karpathy", "base", "abc", Measured({"text_to_image_recall@5": hits}, {"split": "test"})
    )
    assert result["metrics"] == {"image_retrieval_recall@5": 0.75}
    assert (result["task"], result["dataset"], result["language"]) == ("zeroshot_retrieval", "karpathy", "en")
    result = result_json("sts", "stsb", "base", "abc", Measured({"spearman": hits}, {}))
    assert result["scores"]["test"][0]["main_score"] == result["scores"]["test"][0]["cosine_spearman"] == 0.75
    result = result_json(
        "sugarcrepe", "crepe", "base", "abc", Measured({"accuracy@add_obj": hits, "accuracy": hits}, {})
    )
    assert result["metrics"] == {"acc@add_obj": 0.75, "acc": 0.75}


def test_a_bundle_is_one_result_and_an_artifacts_say_nothing_that_differs_from_run_to_run() -> None:
    hits = Sample(np.array([1.0, 0.0]), np.arange(2))
    measured = Measured({"spearman": hits, "spearman@STS12": hits, "spearman@SICK-R": hits}, {"texts": "raw"})
    provenance = Provenance("r" * 64, 1.5, {"torch": "2"})
    whole = result_json("sts7", "all", "tuned", "abc", measured, provenance)
    assert whole["metrics"] == {"spearman": 0.5, "spearman@STS12": 0.5, "spearman@SICK-R": 0.5}
    assert (whole["versions"], whole["dataset_revision"]) == ({"torch": "2"}, "r" * 64)
    result = result_json("sts", "stsb", "base", "abc", Measured({"spearman": Sample(np.ones(2), np.arange(2))}, {}))
    fields = "task_name dataset_revision mteb_version scores evaluation_time kg_co2_emissions model pretrained protocol"
    assert list(result) == fields.split()
    assert (result["task_name"], result["dataset_revision"], result["mteb_version"]) == ("stsb", None, None)
    names = [mteb_name("sts", name) for name in ("stsb", "STS-B", "sts12", "STS16", "mine")]
    assert names == ["STSBenchmark", "STSBenchmark", "STS12", "STS16", "mine"]
    assert mteb_name("sick", "anything") == "SICK-R"
