"""Paraphrases as a data set folder: what other libraries read in it, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from paraclip.flows.cli import run_cli
from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.parquet import read_table
from paraclip.storage.roots import open_store
from paraclip.tasks.dataset import export_dataset, find_paraphrases
from paraclip_core.config import Settings
from paraclip_core.settings import load_settings
from tests.kit.small_runs import both_steps

Capture = pytest.CaptureFixture[str]
HOSTILE = "```` <script>alert(1)</script> ![x](http://evil.example/p.png)"
LICENSES = ("CC-BY-4.0", "CC-BY-NC-4.0", "<b>bad</b> | ![x](http://evil.example)")
ROWS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings, ArtifactStore]:
    """A configuration whose captions are paraphrased from a file."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {
            "caption": f"a dog number {number} on the beach" if number else HOSTILE,
            "image": f"image {number // 2}",
            "split": "val" if number % 10 == 9 else "train",
            "license": LICENSES[2] if number == 5 else LICENSES[number % 2],
        }
        for number in range(ROWS)
    ]
    given = [
        {"caption": row["caption"], "paraphrase_1": f"{row['caption']} one", "paraphrase_2": f"two {row['caption']}"}
        for row in rows[:-4]
    ]
    for name, lines in (("captions.jsonl", rows), ("given.jsonl", given)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = folder / "run.yaml"
    config.write_text(
        f"name: 'made <of> captions'\nrun: {{root: '{folder / 'root'}'}}\n"
        f"data: {{root: '{folder}', sources: [{{path: captions.jsonl}}]}}\n"
        "paraphrase: {engine: file, file: {path: given.jsonl}}\n"
    )
    settings = load_settings(config, [])
    both_steps(settings)
    return config, settings, open_store(settings.run.root)


def test_other_libraries_read_the_same_rows(
    run: tuple[Path, Settings, ArtifactStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings, store = run
    made = find_paraphrases(store, None, settings)
    source = read_table(made.path / "paraphrases").to_pylist()
    assert export_dataset(made, tmp_path / "out", store, "name") == len(source) > 40
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (pip install -e '.[dev]')")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "datasets"))
    assert set(loaded) == {"train"}
    rows: list[dict[str, Any]] = list(loaded["train"])
    columns = ("caption", "paraphrase_1", "paraphrase_2", "image_id", "license", "similarity_1", "similarity_2")
    assert rows == [
        {
            "caption_id": of["caption_id"].hex(),
            "source": "captions.jsonl",
            **{name: of[name] for name in columns},
        }
        for of in source
    ]
    with duckdb.connect() as connection:
        table = connection.sql(f"SELECT * FROM read_parquet('{tmp_path}/out/data/*.parquet')").to_arrow_table()
    assert table.to_pylist() == rows and store.verify(made) == []


def test_the_card_is_valid_and_no_text_comes_alive_in_it(
    run: tuple[Path, Settings, ArtifactStore], tmp_path: Path
) -> None:
    _, settings, store = run
    made = find_paraphrases(store, None, settings)
    export_dataset(made, tmp_path / "out", store, "A name: with ---\n<b>colons")
    card = DatasetCard((tmp_path / "out/README.md").read_text())
    data = card.data.to_dict()
    assert data["pretty_name"] == "A name: with ---\n<b>colons" and data["license"] == "other"
    assert data["license_name"] == "<b>bad</b> | ![x](http://evil.example), CC-BY-4.0, CC-BY-NC-4.0"
    assert "| 1 | file |" in card.text and made.fingerprint in card.text
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert "<b>" not in shown and "<img" not in shown and "<td>CC-BY-4.0</td>" in shown


def test_the_command(run: tuple[Path, Settings, ArtifactStore], tmp_path: Path, capsys: Capture) -> None:
    config, settings, store = run
    artifact = find_paraphrases(store, None, settings)
    root = ["--root", str(store.root)]

    def export(name: str, *arguments: str, code: int = 0) -> Any:
        assert run_cli(["export-dataset", str(tmp_path / name), *arguments]) == code
        out, error = capsys.readouterr()
        return error if code else json.loads(out)

    one = export("one", "-c", str(config), "--json")
    two = export("two", "--artifact", artifact.fingerprint[:20], *root, "--json")
    assert one["artifact"] == two["artifact"] == f"paraphrase_2/{artifact.fingerprint}" and one["rows"] == two["rows"]
    assert DatasetCard((tmp_path / "one/README.md").read_text()).data.to_dict()["pretty_name"] == settings.name
    store.set_channel("chan", {"stage": "paraphrase_2", "fingerprint": artifact.fingerprint})
    assert export("three", "-a", "chan", *root, "--json")["rows"]
    for wrong, message in (
        (["-c", str(config)], "is not empty; choose a new folder"),
        (root, "specify the paraphrases"),
        (["-c", str(config), "--set", "data.max_words=9"], "are not finished"),
        (["-a", "ingest/" + store.list("ingest")[0].fingerprint, *root], "is a ingest artifact; expected paraphrase_2"),
    ):
        assert message in export("one", *wrong, code=2)
