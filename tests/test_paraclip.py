"""The Python interface."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from scipy.stats import spearmanr
from search_home import make_home  # pyright: ignore[reportMissingImports]

import paraclip
from paraclip.flows.cli import run_cli
from paraclip_core.errors import BenchmarkError, ConfigError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and an index."""
    folder = tmp_path_factory.mktemp("home")
    make_home(folder)
    return folder


def test_tables_show_themselves_and_become_data_frames() -> None:
    table = paraclip.Table([{"a": 1.23456, "b": "<b>"}, {"a": None, "c": 2}], "<title>")
    html = table._repr_html_()
    assert "1.23" in html and "&lt;b&gt;" in html and "&lt;title&gt;" in html and "<b>" not in html
    frame = table.to_pandas()
    assert list(frame.columns) == ["a", "b", "c"] and len(frame) == len(table) == 2


def test_wrong_calls_say_what_to_do(home: Path) -> None:
    wrong: Any = [("a dog", 7)]
    with pytest.raises(BenchmarkError, match=r"entry 1 is .*7"):
        paraclip.audit(str(home / "base"), wrong, home / "index.npy")
    with pytest.raises(ConfigError, match=r"finetune\.epoch"):
        paraclip.load_config(None, ["finetune.epoch=3"])


def test_hits_and_audits_of_ones_own_index_are_tables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    index: dict[str, Any] = {"features": "index.npy", "ids": "ids.txt", "base": "base", "root": str(home / "root")}
    hits = paraclip.search("a dog", "tuned", count=3, **index)
    assert list(hits.to_pandas()["rank"]) == [1, 2, 3]
    html = hits._repr_html_()
    assert "&lt;b&gt;.png" in html and "<b>" not in html
    audited = paraclip.audit("tuned", [("a dog", "one dog")], **index)
    assert {row["model"] for row in audited} == {"base", "tuned", "difference"}

    # Without queries, too.
    rows = list(paraclip.audit("base", features="index.npy"))
    assert {"ao@10", "js@10", "ao@10, typo", "ao@10, a photo of"} <= {row["metric"] for row in rows}
    (exact,) = [row["mean"] for row in rows if row["metric"] == "ao@10, capitals"]
    assert exact == 100, "this tokenizer lowers letters"
    assert run_cli(["audit", "-m", "tuned", "--base", "base", "--features", "index.npy", "--ids", "ids.txt"]) == 0
    assert "By what changed" in (home / "audit.html").read_text()


def spearman(model: str, path: Path) -> float:
    """Of a STS file in percent, by open_clip and scipy alone."""
    network: Any = paraclip.load(model).model
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    tokens = open_clip.SimpleTokenizer()
    with torch.no_grad():
        first, second = (
            network.encode_text(tokens([row[name] for row in rows]), normalize=True)
            for name in ("sentence1", "sentence2")
        )
    result: Any = spearmanr((first * second).sum(1), [float(row["score"]) for row in rows])
    return 100 * result.statistic


def test_any_number_of_models_on_a_real_benchmark(home: Path, data_root: Path) -> None:
    stsb, root = data_root / "sts" / "raw" / "STSB-test.tsv", str(home / "root")
    models = {"plain": str(home / "base"), "other": str(home / "tuned"), "same": str(home / "base")}
    result = paraclip.evaluate(models, [f"stsb={stsb}"], root=root, device="cpu", report=True)
    values = {row["model"]: row for row in result if row["metric"] == "spearman"}
    figures = {"plain": values["other"]["base"], "other": values["other"]["tuned"]}
    for name, figure in figures.items():
        assert figure == pytest.approx(spearman(models[name], stsb), abs=0.01)
    assert values["same"]["delta"] == 0
    assert values["other"]["low"] <= values["other"]["delta"] <= values["other"]["high"]
    assert result.verdict is None and set(result.summary["comparisons"]) == {"other", "same"}
    assert result.report is not None and (result.report / "other" / "report.html").is_file()
    assert list(result.to_pandas()["model"]) == ["other", "same"] and "stsb" in result._repr_html_()

    pair = {"base": models["plain"], "tuned": models["other"]}
    result = paraclip.evaluate(pair, [f"stsb={stsb}"], root=root, device="cpu")
    (row,) = result
    assert (row["base"], row["tuned"]) == (figures["plain"], figures["other"])
    assert result.verdict == "hold"
    with pytest.raises(ConfigError, match="expected two at least"):
        paraclip.evaluate({"plain": models["plain"]}, [f"stsb={stsb}"])
    with pytest.raises(BenchmarkError, match=r"gone\.tsv"):
        paraclip.evaluate(pair, [f"stsb={home}/gone.tsv"], root=root)
