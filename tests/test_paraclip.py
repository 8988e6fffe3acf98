"""The Python interface."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import paraclip
from paraclip.flows.cli import run_cli
from paraclip_core.errors import BenchmarkError, ConfigError, InputError, UnknownNameError
from tests.kit.search_home import make_home


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


def test_without_pandas_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="not installed: pip install pandas"):
        paraclip.Table([{"a": 1}]).to_pandas()


def test_wrong_calls_say_what_to_do(home: Path) -> None:
    wrong: Any = [("a dog", 7)]
    with pytest.raises(BenchmarkError, match=r"entry 1 is .*7"):
        paraclip.audit(str(home / "base"), wrong, home / "index.npy")
    with pytest.raises(ConfigError, match=r"finetune\.epoch"):
        paraclip.load_config(None, ["finetune.epoch=3"])
    # A text is a list of letters, and each would be asked for.
    with pytest.raises(ConfigError, match="expected a list of captions, got the text 'a kid'"):
        paraclip.paraphrase("a kid")
    with pytest.raises(ConfigError, match="expected a list of benchmarks, got the text"):
        paraclip.evaluate({"base": str(home / "base")}, "stsb=x.tsv")


def test_expanded_queries_are_a_table(home: Path, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("caption,paraphrase_1,paraphrase_2\na red dog,one dog,a hound\n")
    overrides = [f"data.root={tmp_path}", f"run.root={tmp_path / 'root'}", "run.device=cpu"]
    file = ["paraphrase.engine=file", "paraphrase.file.path=own.csv", "paraphrase.filters.preset=off"]
    settings = paraclip.load_config(None, [*overrides, *file])
    queries, reports = ["a red dog", "a cat"], list[int]()

    def progress(done: int, total: int | None, **facts: Any) -> None:
        reports.append(done)

    table = paraclip.expand(queries, home / "tuned", settings, progress=progress)
    assert [(row["query"], row["paraphrases"]) for row in table] == [
        ("a red dog", ["one dog", "a hound"]),
        ("a cat", []),
    ]
    mean = paraclip.load(home / "tuned").encode_texts(["a red dog", "one dog", "a hound"]).mean(axis=0)
    np.testing.assert_allclose(table.rows[0]["vector"], mean / np.linalg.norm(mean), atol=1e-6)
    assert table.title.startswith("1 of 2 queries expanded") and reports
    for wrong, count, message in (
        ("a dog", 3, "got the text"),
        (["a", " "], 3, "entry 1"),
        (["a"], 17, "from 1 to 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            paraclip.expand(wrong, home / "tuned", settings, count)


@pytest.mark.parametrize(
    ("query", "count", "message"),
    [
        (" ", 3, "the query is empty"),
        ([], 3, "the list of queries is empty"),
        (["a dog", ""], 3, "entry 1 of the queries is empty"),
        (["a dog", 7], 3, "entry 1 of the queries is 7, expected text"),
        (b"a dog", 3, "expected a list of queries, got b'a dog'"),
        (None, 3, "expected a list of queries, got None"),
        ("a dog", 0, "count is 0; expected"),
        ("a dog", 2.5, "count is 2.5; expected"),
    ],
)
def test_a_wrong_search_says_what_is_wrong(home: Path, query: Any, count: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        paraclip.search(query, home / "tuned", home / "index.npy", count=count)


def test_several_queries_are_searched_as_each_alone(home: Path) -> None:
    index: dict[str, Any] = {"features": home / "index.npy", "ids": home / "ids.txt", "base": home / "base"}
    queries = ["a dog", "a red car", "a dog"]
    hits = paraclip.search(queries, home / "tuned", count=4, **index)
    alone = [row for query in queries for row in paraclip.search(query, home / "tuned", count=4, **index)]
    assert list(hits) == [{"query": queries[n // 4], **row} for n, row in enumerate(alone)]
    assert hits.to_pandas().columns[0] == "query"


def test_the_root_is_the_command_lines(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls = (
        lambda: paraclip.load("absent"),
        lambda: paraclip.search("a dog", "absent"),
        lambda: paraclip.audit("absent"),
        lambda: paraclip.export("absent", tmp_path / "out"),
        lambda: paraclip.evaluate({"a": str(home / "base"), "b": "absent"}, [f"retrieval={home / 'ids.txt'}"]),
    )
    for variable, root in (("", "runs"), ("elsewhere", "elsewhere")):
        monkeypatch.setenv("PARACLIP_ROOT", variable)
        for call in calls:
            with pytest.raises(UnknownNameError, match=rf" under {tmp_path / root} "):
                call()
    with pytest.raises(UnknownNameError, match=rf" under {tmp_path / 'given'} "):
        paraclip.load("absent", root="given")


def test_a_loaded_model_encodes_texts_and_images(home: Path) -> None:
    clip, pictures = paraclip.load(home / "tuned", device="auto"), sorted((home / "pictures").iterdir())
    texts = ["a dog", "a red car on a street"] * 3000
    vectors = clip.encode_texts(texts)
    with torch.no_grad():
        network: Any = clip.model
        expected = network.encode_text(open_clip.SimpleTokenizer()(texts[:2]), normalize=True).numpy()
    np.testing.assert_allclose(vectors, np.tile(expected, (3000, 1)), atol=1e-5)
    images = clip.encode_images(pictures)
    # The index has the base's, of the same image encoder, and is of float16.
    np.testing.assert_allclose(images, np.load(home / "index.npy"), atol=1e-3)
    np.testing.assert_array_equal(images, clip.encode_images(map(Image.open, pictures)))
    for rows in (vectors, images):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert clip.encode_texts([]).shape == clip.encode_images([]).shape == (0, 32)


def test_what_cannot_be_encoded_is_said_in_words(home: Path, tmp_path: Path) -> None:
    clip, picture = paraclip.load(home / "base"), home / "pictures" / "00 <b>.png"
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:300])
    wrong: list[tuple[type[Exception], Any, str]] = [
        (ConfigError, str(picture), "expected a list of images or paths, got '"),
        (ConfigError, Image.new("RGB", (4, 4)), "put a single one into a list"),
        (ConfigError, [picture, 7], "entry 1 of the images is of type int"),
        (InputError, [tmp_path / "absent.png"], r"cannot read the image .*/absent\.png: No such file"),
        (InputError, [cut], r"cut\.png cannot be decoded as an image"),
        (InputError, [Image.new("RGB", (0, 4))], "0 x 4 pixels"),
    ]
    for error, images, message in wrong:
        with pytest.raises(error, match=message):
            clip.encode_images(images)
    with Image.open(cut) as opened, pytest.raises(InputError, match="entry 1 of the images cannot be decoded"):
        clip.encode_images([picture, opened])
    for texts, message in (("a dog", "expected a list of texts, got the text 'a dog'"), (["a", None], "entry 1")):
        with pytest.raises(ConfigError, match=message):
            clip.encode_texts(texts)  # type: ignore[arg-type]


def test_hits_and_audits_of_ones_own_index_are_tables(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    index: dict[str, Any] = {"features": "index.npy", "ids": "ids.txt", "base": "base", "root": str(home / "root")}
    hits = paraclip.search("a dog", "tuned", count=3, **index)
    assert list(hits.to_pandas()["rank"]) == [1, 2, 3]
    html = hits._repr_html_()
    assert "&lt;b&gt;.png" in html and "<b>" not in html
    audited = paraclip.audit("tuned", [("a dog", "one dog")], **index)
    assert {row["model"] for row in audited} == {"base", "tuned", "difference"}
    assert {"overlap@10", "first_image_changes"} <= {row["metric"] for row in audited}

    # Without queries, too.
    rows = list(paraclip.audit("base", features="index.npy"))
    assert {"ao@10", "js@10", "ao@10, typo", "ao@10, a photo of"} <= {row["metric"] for row in rows}
    (exact,) = [row["mean"] for row in rows if row["metric"] == "ao@10, capitals"]
    assert exact == 100, "this tokenizer lowers letters"
    assert run_cli(["audit", "-m", "tuned", "--base", "base", "--features", "index.npy", "--ids", "ids.txt"]) == 0
    page = (home / "audit.html").read_text()
    assert "By what changed" in page and "What changes for users" in page
    shown = capsys.readouterr().out
    assert "of the first ten images stay on average" in shown and "threshold of the tuned model" in shown


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
    with pytest.raises(ConfigError, match="expected at least two"):
        paraclip.evaluate({"plain": models["plain"]}, [f"stsb={stsb}"])
    with pytest.raises(BenchmarkError, match=r"gone\.tsv"):
        paraclip.evaluate(pair, [f"stsb={home}/gone.tsv"], root=root)
