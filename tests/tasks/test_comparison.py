"""`paraclip evaluate`: three real models in one table, and pages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from paraclip.flows.cli import run_cli
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.export import save_release
from paraclip_core.clip.options import ModelOptions
from paraclip_core.evaluation.prepare import parse_benchmark
from paraclip_core.evaluation.run import compare_models

NAMES = ("plain", "one", "two")
WORDS = ("dog", "cat", "sea", "man", "red", "old", "tree", "car")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models with one image encoder."""
    folder = tmp_path_factory.mktemp("models")
    clip = built_in_clip(ModelOptions(text_width=64, text_layers=1, embed_dim=32))
    for seed, name in enumerate(NAMES):
        save_release(clip, folder / name, "card")
        with torch.no_grad():
            torch.manual_seed(seed)
            model: Any = clip.model
            weight = model.token_embedding.weight
            weight.add_(0.05 * torch.randn_like(weight))
    return folder


@pytest.fixture
def files(tmp_path: Path, data_root: Path) -> Path:
    """STS pairs, and captions of real images that lie elsewhere."""
    draw = random.Random(0)
    rows = [f"{draw.randrange(6)}\t{' '.join(draw.sample(WORDS, 3))}\t{draw.choice(WORDS)}" for _ in range(40)]
    (tmp_path / "stsb.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *rows]))
    (tmp_path / "captions.jsonl").write_bytes((data_root / "coco" / "coco_val2017_mini.jsonl").read_bytes())
    return tmp_path


def test_any_number_of_models_in_one_table(models: Path, files: Path, data_root: Path, capsys: Capture) -> None:
    images = data_root / "coco" / "coco_val2017_mini.tar"
    given = [text for name in NAMES for text in ("--model", f"{name}={models / name}")]
    given += ["--benchmark", f"stsb={files / 'stsb.tsv'}", "--benchmark", f"coco={files / 'captions.jsonl'}"]
    given += ["--root", str(files / "root"), "--out", str(files / "out"), "--device", "cpu"]
    assert run_cli(["evaluate", *given, "--images", str(images), "--report"]) == 0
    summary = json.loads((files / "out" / "summary.json").read_text())
    shown = capsys.readouterr().out
    assert summary["base"] == "plain" and set(summary["models"]) == {*NAMES}
    assert set(summary["comparisons"]) == {"one", "two"}
    for name in ("one", "two"):
        churn = json.loads((files / "out" / name / "churn.json").read_text())
        changes = summary["comparisons"][name]["churn"]
        assert churn["benchmark"] == "coco" and churn["overlap"] == changes["overlap@10"] < 100
        assert f"overlap@10 {changes['overlap@10']:.1f} %" in shown
        delta = summary["comparisons"][name]["deltas"]["stsb"]["spearman"]
        figures = [summary["models"][model]["stsb"]["spearman"] for model in ("plain", name)]
        assert delta == pytest.approx(figures[1] - figures[0], abs=1e-5)
        page = (files / "out" / name / "report.html").read_text("utf-8")
        assert f"<h1>{name} against plain</h1>" in page and "33 images searched" in page
        assert "What changes for users" in page
        assert "Load the model" not in page and str(models / name) in page
    assert "spearman ↑" in shown and "two against plain" in shown and shown.count("report: ") == 2


def test_progress_says_what_is_encoded_and_how_long_it_takes(models: Path, files: Path, data_root: Path) -> None:
    reports: list[dict[str, Any]] = []
    benchmark = parse_benchmark(f"coco={files / 'captions.jsonl'}").model_copy(
        update={"images": str(data_root / "coco" / "coco_val2017_mini.tar")}
    )

    def progress(done: int, total: int | None, **facts: Any) -> None:
        reports.append({"done": done, "total": total, **facts})

    references = {name: str(models / name) for name in NAMES}
    evaluations = compare_models(references, [benchmark], device="cpu", progress=progress)
    assert list(evaluations) == ["one", "two"]
    images = [line for line in reports if "images" in line]
    # One image encoder, so its images are encoded once.
    assert [(line["model"], line["images"]) for line in images] == [("plain", "33 of 33")]
    assert images[0]["eta_seconds"] >= 0 and {"done": 3, "total": 3} in reports
    assert any(line.get("texts") == "165 of 165" for line in reports)


def test_an_expanded_model_is_measured_as_a_model(models: Path, files: Path, capsys: Capture) -> None:
    benchmark = ["--benchmark", f"stsb={files / 'stsb.tsv'}"]
    own = ["--set", "paraphrase.engine=file", "--set", f"paraphrase.file.path={files / 'own.csv'}"]
    where = ["--root", str(files / "root"), "--out", str(files / "out")]
    rows = [line.split("\t")[1:] for line in (files / "stsb.tsv").read_text().splitlines()[1:]]
    texts = list(dict.fromkeys(text for row in rows for text in row))
    lines = [f"{text},{text} there,see {text}" for text in texts]
    (files / "own.csv").write_text("\n".join(["caption,paraphrase_1,paraphrase_2", *lines]))
    (files / "queries.txt").write_text(texts[0])
    heads, lacking = files / "heads.parquet", files / "out" / "missing_queries.jsonl"

    def expand(*queries: Path) -> int:
        return run_cli(["expand", *map(str, queries), "-o", str(heads), "-m", str(models / "one"), *own, *where[:2]])

    given = ["-m", f"plain={models / 'plain'}", "-m", f"one={models / 'one'}"]
    given += ["-m", f"expanded={heads}", *benchmark, *where, "--device", "cpu"]
    assert run_cli(["evaluate", *given]) == 2
    assert "heads.parquet" in capsys.readouterr().err
    assert expand(files / "queries.txt") == 0
    assert run_cli(["evaluate", *given]) == 1
    shown = capsys.readouterr().err
    assert f"lacks {len(texts) - 1} of {len(texts)} texts" in shown and str(lacking) in shown
    assert {json.loads(line)["query"] for line in lacking.read_text().splitlines()} == {*texts[1:]}
    assert expand(heads, lacking) == 0
    assert run_cli(["evaluate", *given]) == 0
    summary = json.loads((files / "out" / "summary.json").read_text())
    figures = {name: summary["models"][name]["stsb"]["spearman"] for name in ("plain", "one", "expanded")}
    assert set(summary["comparisons"]) == {"one", "expanded"} and len(set(figures.values())) == 3
    assert summary["fingerprints"]["expanded"] == f"{models / 'one'} with {heads}"
