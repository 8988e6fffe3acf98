"""Paraphrases as a data set folder: what other libraries read in it, what its card says, and who is left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from paraclip.flows.cli import run_cli
from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.parquet import read_table, write_table
from paraclip.storage.roots import open_store
from paraclip.tasks.dataset import export_dataset, find_paraphrases, read_opt_outs
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError, InputError
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, prompt_for
from paraclip_core.settings import load_settings
from paraclip_core.tables import PARAPHRASES
from tests.kit.small_runs import both_steps

Capture = pytest.CaptureFixture[str]
HOSTILE = (
    "```` <script>alert(1)</script> ![x](http://evil.example/p.png)",
    "--- # heading | cell | [click](javascript:alert(1))",
    "<img src=x onerror=alert(1)> {{ card_data }} ';DROP TABLE x",
)
LICENSES = ("CC-BY-4.0", "CC-BY-NC-4.0", "<b>bad</b> | ![x](http://evil.example)")
ROWS = 60
LIST = "names.txt"


def source_rows() -> list[dict[str, str]]:
    rows = []
    for number in range(ROWS):
        caption = HOSTILE[number] if number < len(HOSTILE) else f"a dog number {number} on the beach"
        split = "val" if number % 10 == 9 else "train"
        license = LICENSES[2] if number == 5 else LICENSES[number % 2]
        rows.append({"caption": caption, "image": f"image {number // 2}", "split": split, "license": license})
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings, ArtifactStore]:
    """A configuration whose captions, some of them hostile, are paraphrased from a file."""
    folder = tmp_path_factory.mktemp("run")
    rows = source_rows()
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


@pytest.fixture
def made(run: tuple[Path, Settings, ArtifactStore]) -> Artifact:
    return find_paraphrases(run[2], settings=run[1])


@pytest.fixture
def store(run: tuple[Path, Settings, ArtifactStore]) -> ArtifactStore:
    return run[2]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """The real library, without a network and with its cache below `tmp_path`."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (pip install -e '.[dev]')")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    return lambda folder: datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "datasets"))


def again(
    store: ArtifactStore,
    artifact: Artifact,
    name: str,
    edit: Callable[[pa.Table], pa.Table] = lambda table: table,
    **changes: dict[str, Any],
) -> Artifact:
    """A copy of an artifact with another manifest; `edit` changes its captions or paraphrases."""
    inputs, options, metrics = (
        {**getattr(artifact.manifest, field), **changes.get(field, {})} for field in ("inputs", "options", "metrics")
    )
    if (same := store.find(artifact.stage, name)) is not None:
        store.remove(same)
    with store.writing(artifact.stage, name) as work:
        shutil.copytree(artifact.path, work.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        for path in work.out.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (path,) = (path for folder in ("captions", "paraphrases") for path in work.out.glob(f"{folder}/*"))
        write_table(path, edit(read_table(path)))
        return store.commit(Draft(artifact.stage, name, 1, inputs, options, {"paraclip": "1"}), metrics, 0.0)


def ancestors(made: Artifact, store: ArtifactStore) -> tuple[Artifact, Artifact]:
    """Step 1 and the captions that it read."""
    first = store.resolve(f"paraphrase_1/{made.manifest.inputs['paraphrase_1']}")
    return first, store.resolve(f"ingest/{first.manifest.inputs['ingest']}")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_libraries_read_the_same_rows(
    made: Artifact, store: ArtifactStore, tmp_path: Path, load: Callable[[Path], Any]
) -> None:
    dataset = export_dataset(made, tmp_path / "out", store, shard_rows=20)
    source = read_table(made.path / "paraphrases").to_pylist()
    assert dataset.rows == {"train": len(source)} and len(source) > 40
    assert dataset.files == ["README.md", *(f"data/train-{n:05d}-of-00003.parquet" for n in range(3))]
    loaded = load(tmp_path / "out")
    assert set(loaded) == {"train"}
    columns = ["caption_id", "caption", "paraphrase_1", "paraphrase_2", "image_id", "source", "license"]
    assert loaded["train"].column_names == columns  # the file engine judged no similarity
    rows = list(loaded["train"])
    for row, of in zip(rows, source, strict=True):
        assert row["caption_id"] == of["caption_id"].hex() and row["source"] == "captions.jsonl"
        assert all(row[name] == of[name] for name in columns if name not in ("caption_id", "source", "license"))
        assert row["license"] == of["license"]
    query = f"SELECT * FROM read_parquet('{tmp_path}/out/data/train-*.parquet')"
    with duckdb.connect() as connection:
        assert connection.sql(query).to_arrow_table().to_pylist() == rows
    assert store.verify(made) == []


def test_rewrites_of_a_caption_each_have_its_split_and_source(
    made: Artifact, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def three_each(table: pa.Table) -> pa.Table:
        rows = ((row, number) for row in table.to_pylist() for number in range(3))
        rewritten = [
            {**row, "paraphrase_2": f"{row['paraphrase_2']} {number}", "similarity_2": 0.5} for row, number in rows
        ]
        return pa.Table.from_pylist(rewritten, schema=PARAPHRASES)

    several = again(store, made, "8" * 32, edit=three_each)
    source = read_table(several.path / "paraphrases").to_pylist()
    opt_outs = [source[0]["caption_id"].hex(), source[9]["image_id"]]
    dataset = export_dataset(several, tmp_path / "one", store)
    assert dataset.rows == {"train": len(source)} and len(source) > 120
    rows = read_table(tmp_path / "one/data").to_pylist()
    assert [row["caption_id"] for row in rows] == [of["caption_id"].hex() for of in source]
    assert {row["similarity_2"] for row in rows} == {0.5} and "similarity_1" not in rows[0]
    assert [row["paraphrase_2"] for row in rows] == [of["paraphrase_2"] for of in source]
    monkeypatch.setattr("paraclip.tasks.dataset.BATCH_ROWS", 7)
    export_dataset(several, tmp_path / "small", store)
    assert contents(tmp_path / "small") == contents(tmp_path / "one")
    without = export_dataset(several, tmp_path / "two", store, opt_outs=opt_outs)
    assert without.left_out >= 6 and without.left_out % 3 == 0
    assert without.rows == {"train": len(source) - without.left_out}


def test_the_card_is_valid_and_tells_everything(made: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    dataset = export_dataset(made, tmp_path / "out", store, name="A name: with ---\ncolons", languages=["en", "de"])
    text = (tmp_path / "out/README.md").read_text()
    data = DatasetCard(text).data.to_dict()
    assert data["language"] == ["en", "de"]
    assert data["license"] == "other" and data["license_name"] == "b-bad-b-x-http-evil.example-cc-by-4.0-cc-by-nc-4.0"
    assert data["pretty_name"] == "A name: with ---\ncolons"
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    assert data["task_categories"] and "paraphrase" in data["tags"]
    metrics = made.manifest.metrics
    assert "| engine | file | file |" in text and metrics["model"].replace(":", "&#58;") in text
    assert f"| captions with an accepted paraphrase 2 | {metrics['accepted']} |" in text
    first, _ = ancestors(made, store)
    assert first.manifest.metrics["rejected"]
    for reason, count in first.manifest.metrics["rejected"].items():
        assert f"| paraphrase 1 | {reason} | {count} |" in text
    assert "Off: every answer" in text and "No opt-out list was given." in text and made.fingerprint in text
    assert dataset.license == ("other",)
    assert "synthetic" not in data["tags"] and "language model that wrote" not in text


def shown(card: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(DatasetCard(card).text)


def test_prompts_sampling_and_filters_of_a_language_model(made: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    own = Settings().paraphrase.model_copy(update={"prompt_2": "```\n# Say {} <b>otherwise</b>\n```"})
    settings = Settings(paraphrase=own)

    def asked(number: int, prompt: Any) -> dict[str, Any]:
        about = {"prompt": {"id": prompt.id, "hash": prompt.hash.hex()}, "engine": "vllm", "seed": 3, "attempts": 2}
        filters = {"preset": "small-model", "min_similarity": 0.75, "max_length_ratio": number}
        sampling = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 40, "n": 2}
        return {**about, "filters": filters, "sampling": sampling, "synonyms": number == 1 and prompt is FEW_SHOT[1]}

    first, _ = ancestors(made, store)
    metrics = {"engine": "vllm", "model": "Org/Model@0123abc", "rejected": {"echo": 4}}
    for name, one, two in (("7", FEW_SHOT[1], PAPER[2]), ("8", PAPER[1], prompt_for(own, 2))):
        step_1 = again(store, first, name * 32, options=asked(1, one), metrics=metrics)
        inputs = {"paraphrase_1": step_1.fingerprint}
        step_2 = again(store, made, name * 32, inputs=inputs, options=asked(2, two), metrics=metrics)
        if name == "8":
            with pytest.raises(ConfigError, match=r"own/2.*-c FILE with --artifact"):
                export_dataset(step_2, tmp_path / name, store)
            assert not (tmp_path / name).exists()
        export_dataset(step_2, tmp_path / name, store, settings=settings)
        text = (tmp_path / name / "README.md").read_text()
        blocks = [token.content for token in MarkdownIt().parse(DatasetCard(text).text) if token.type == "fence"]
        for prompt in (one, two):
            whole = "\n".join(f"{role}: {words}" for role, words in prompt.turns)
            assert any(f"{whole}\nuser: {prompt.before}{{}}{prompt.after}".strip() in block for block in blocks)
        assert any("A thesaurus of common words" in block for block in blocks) == (name == "7")
        assert ("drawn with temperature 0.7" in text) == (name == "7")
        assert "synthetic" in DatasetCard(text).data.to_dict()["tags"] and "language model that wrote" in text
        assert "Org/Model&#64;0123abc" in text and "| paraphrase 2 | echo | 4 |" in text
        assert "| sampling, temperature | 0.8 | 0.8 |" in text and "| max_length_ratio | 1 | 2 |" in text
        assert "<b>otherwise" not in shown(text)


def test_opt_outs_are_left_out(
    made: Artifact, store: ArtifactStore, tmp_path: Path, load: Callable[[Path], Any]
) -> None:
    rows = read_table(made.path / "paraphrases").to_pylist()
    listed = tmp_path / LIST
    lines = [rows[4]["caption_id"].hex().upper(), rows[20]["image_id"], f"  {rows[30]['caption']}  ", "", "nobody"]
    raw = rows[10]["caption"].replace(" ", "   ").replace("a", "&#97;")
    lines += ["a  dog &amp; cat", rows[30]["caption"], HOSTILE[0], raw]
    listed.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    entries = read_opt_outs(listed)
    assert len(entries) == 7
    dataset = export_dataset(made, tmp_path / "out", store, opt_outs=entries, contact="write to a@b.example")
    gone = {rows[4]["caption"], rows[10]["caption"], rows[30]["caption"], HOSTILE[0]}
    expected = [
        row["caption"] for row in rows if row["caption"] not in gone and row["image_id"] != rows[20]["image_id"]
    ]
    assert load(tmp_path / "out")["train"]["caption"][:] == expected
    assert dataset.left_out == len(rows) - len(expected) >= 5
    assert dataset.unmatched == ["nobody", "a  dog &amp; cat"]
    text = (tmp_path / "out/README.md").read_text()
    assert f"because of a list of 7 opt-outs: {dataset.left_out}." in text and "write to a@b.example" in text
    assert (
        f"| left out by opt-outs | {dataset.left_out} |" in text and f"| rows here, train | {len(expected)} |" in text
    )
    assert not [line for line in lines if line.strip() and line.strip() in text]  # who opted out is nobody's business


def test_what_cannot_be_exported_is_named(made: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    everything = read_table(made.path / "paraphrases").column("caption").to_pylist()
    with pytest.raises(ConfigError, match="no row is left"):
        export_dataset(made, tmp_path / "out", store, opt_outs=everything)
    (tmp_path / LIST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"names.txt cannot be read as UTF-8"):
        read_opt_outs(tmp_path / LIST)
    orphan = again(store, made, "9" * 32, inputs={"paraphrase_1": "0" * 32})
    with pytest.raises(ArtifactError, match=f"paraphrase_1/{'0' * 32}"):
        export_dataset(orphan, tmp_path / "out", store)
    assert [path.name for path in tmp_path.iterdir()] == [LIST]
    first, ingest = ancestors(made, store)
    few = again(store, ingest, "5" * 32, edit=lambda rows: rows.slice(0, 5))
    first = again(store, first, "6" * 32, inputs={"ingest": few.fingerprint})
    second = again(store, made, "6" * 32, inputs={"paraphrase_1": first.fingerprint})
    with pytest.raises(ArtifactError, match=r"are not in .*artifacts verify"):
        export_dataset(second, tmp_path / "out", store)


def test_the_command(run: tuple[Path, Settings, ArtifactStore], tmp_path: Path, capsys: Capture) -> None:
    config, settings, store = run
    artifact = find_paraphrases(store, settings=settings)
    (tmp_path / LIST).write_text("nobody\nimage 0\n")
    listed, root = ["--opt-outs", str(tmp_path / LIST)], ["--root", str(store.root)]

    def export(name: str, *arguments: str, code: int = 0) -> Any:
        assert run_cli(["export-dataset", str(tmp_path / name), *arguments]) == code
        out, error = capsys.readouterr()
        return error if code else json.loads(out) if "--json" in arguments else out

    one = export("one", "-c", str(config), *listed, "--json")
    two = export("two", "--artifact", artifact.fingerprint[:20], *root, "--json")
    assert one["artifact"] == two["artifact"] == f"paraphrase_2/{artifact.fingerprint}"
    assert one["opt_outs"] == {"entries": 2, "rows": 2, "unmatched": ["nobody"]}
    assert two["rows"]["train"] == one["rows"]["train"] + 2 and one["license"] == ["other"]
    assert two["files"] == ["README.md", "data/train-00000-of-00001.parquet"]
    assert DatasetCard((tmp_path / "one/README.md").read_text()).data.to_dict()["pretty_name"] == "made <of> captions"
    assert "unmatched:\n  - nobody\n" in export("three", "-c", str(config), *listed)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    store.set_channel("chan", {"stage": "paraphrase_2", "fingerprint": artifact.fingerprint})
    assert export("four", "-a", "chan", *root, "--json")["rows"]
    for wrong, message in (
        (["-c", str(config)], "is not empty; choose a new folder"),
        (root, "specify the paraphrases"),
        (["-c", str(config), "--set", "data.max_words=9"], "are not finished"),
        (["-a", "ingest/" + store.list("ingest")[0].fingerprint, *root], "is a ingest artifact; expected paraphrase_2"),
    ):
        assert message in export("one", *wrong, code=2)
