"""The paraphrase stages on ingested captions: artifacts, kills, fingerprints, what a change costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.ingest import INGEST
from paraclip.tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2, finished_samples
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.config import FileEngineOptions, ParaphraseOptions, Settings
from paraclip_core.errors import InputError
from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES
from tests.kit.tiny_encoder import tiny_encoder

FEW = 40
"""Images of the small data set; each has five captions."""
OFF = FilterOptions(preset="off")


@pytest.fixture(scope="session")
def flickr(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real captions of a few images, some of them of another split."""
    content = json.loads((data_root / "flickr8k" / "dataset_flickr8k.json").read_bytes())
    folder = tmp_path_factory.mktemp("flickr")
    images = [image for image in content["images"] if image["split"] == "train"][:FEW]
    images += [image for image in content["images"] if image["split"] == "val"][:5]
    for name, count in (("small.json", FEW + 5), ("fewer.json", FEW - 10)):
        (folder / name).write_text(json.dumps({"images": images[:count], "dataset": "flickr8k"}))
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its cosines mean nothing, and have all their digits."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def settings_of(folder: Path, source: str = "small.json", **options: Any) -> Settings:
    """Paraphrases from a file: an image's next captions."""
    chosen = {"engine": "file", "file": FileEngineOptions(path="small.json"), "filters": OFF, "chunk": 16}
    return Settings(
        data=DataOptions(root=str(folder), sources=(SourceOptions(path=source, format="karpathy"),)),
        paraphrase=ParaphraseOptions(**(chosen | options)),
    )


def asking(folder: Path, captions: Sequence[str], engine: str = "Well", **options: Any) -> Settings:
    """Paraphrases from an engine, of captions that are written for it."""
    folder.mkdir(exist_ok=True)
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    chosen = {"engine": f"tests.kit.scripted_engine:{engine}", "model": "m", "filters": OFF}
    return Settings(
        data=DataOptions(root=str(folder), sources=(SourceOptions(path="captions.txt", format="text"),)),
        paraphrase=ParaphraseOptions(**(chosen | options)),
    )


def run_stage(stage: Stage, settings: Settings, store: ArtifactStore, **inputs: Artifact) -> Artifact:
    run = Run(settings, store)
    options = dict(stage.options(run))
    names = {name: artifact.fingerprint for name, artifact in inputs.items()} | dict(stage.sources(run))
    draft = Draft(stage.name, fingerprint(stage.name, stage.version, options, names), stage.version, names, options)
    return execute(stage, draft, run, inputs)


def run_all(settings: Settings, store: ArtifactStore) -> tuple[Artifact, Artifact]:
    ingested = run_stage(INGEST, settings, store)
    first = run_stage(PARAPHRASE_1, settings, store, ingest=ingested)
    return first, run_stage(PARAPHRASE_2, settings, store, paraphrase_1=first)


def contents(artifacts: Sequence[Artifact]) -> list[dict[str, str]]:
    return [{name: entry.sha256 for name, entry in a.manifest.files.items()} for a in artifacts]


def figures(artifacts: Sequence[Artifact]) -> list[tuple[int, int]]:
    """Answers and filter results of each step."""
    return [(a.manifest.metrics["generated"], a.manifest.metrics["filtered"]) for a in artifacts]


def lose_artifacts(store: ArtifactStore) -> None:
    for name in ("paraphrase_2", "paraphrase_1"):
        for artifact in store.list(name):
            store.remove(artifact)


@pytest.fixture(scope="module")
def plain(flickr: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Both steps of the small data set, undisturbed."""
    return run_all(settings_of(flickr), ArtifactStore(tmp_path_factory.mktemp("plain")))


def test_artifacts_and_metrics(plain: tuple[Artifact, Artifact]) -> None:
    first, second = plain
    store = ArtifactStore(first.path.parents[2])
    assert set(contents([first])[0]) == {"paraphrases/part-00000.parquet", "rejects/part-00000.parquet"}
    rows = read_table(second.path / "paraphrases")
    assert rows.schema == PARAPHRASES
    assert read_table(second.path / "rejects").schema == PARAPHRASE_REJECTS
    # Only training captions, each with the next two captions of its image.
    ingested = read_table(store.list("ingest")[0].path / "captions").column("split").to_pylist()
    assert 100 < rows.num_rows == ingested.count("train") < len(ingested)
    row = rows.to_pylist()[0]
    same_image = [r["caption"] for r in rows.to_pylist() if r["image_id"] == row["image_id"]]
    assert row["paraphrase_1"].split()[:3] == same_image[1].split()[:3]
    assert row["paraphrase_2"].split()[:3] == same_image[2].split()[:3]
    metrics = first.manifest.metrics
    assert metrics["accepted"] == metrics["kept"] == read_table(first.path / "paraphrases").num_rows
    assert metrics["captions"] == metrics["accepted"] + sum(metrics["rejected"].values())
    assert (metrics["engine"], metrics["cached"]) == ("file", 0)
    assert "prompts" not in metrics, "a file is asked nothing"
    assert metrics["model"].startswith("file:")
    assert not [path for path in (store.root / "work").rglob("*") if path.is_file()], "nothing is left of the tables"


def test_what_no_caption_finds_a_paraphrase_in_stops_before_anything_is_trained(flickr: Path, tmp_path: Path) -> None:
    (flickr / "other.csv").write_text("caption,paraphrase_1,paraphrase_2\na zebra on the moon,b,c\n")
    with pytest.raises(InputError, match=r"other\.csv .*\(no_paraphrase \d+\)"):
        run_all(settings_of(flickr, file=FileEngineOptions(path="other.csv")), ArtifactStore(tmp_path / "root"))


def test_the_same_bytes_from_any_chunk_and_from_the_cache(
    flickr: Path, plain: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    assert contents(run_all(settings_of(flickr, chunk=1024), store)) == contents(plain)
    # The artifacts are lost, the filter results, too, and the file over the parts.
    lose_artifacts(store)
    shutil.rmtree(store.cache / "filter_results")
    (store.cache / "answers.duckdb").unlink()
    again = run_all(settings_of(flickr), store)
    assert contents(again) == contents(plain)
    assert [generated for generated, _ in figures(again)] == [0, 0] and all(filtered for _, filtered in figures(again))


PLACES = ("beach", "street", "field")
CARS = [f"the car {n} near a {PLACES[n % 3]} is {'slow' if n % 8 in (0, 4, 7) else 'fast'}" for n in range(72)]


def uneven(folder: Path, encoder: Path, captions: Sequence[str] = CARS, **changed: Any) -> Settings:
    """Answers that are good, the same for many, echoes or nothing, and a second attempt."""
    filters: dict[str, Any] = {"preset": "capable", "encoder": str(encoder), "min_similarity": -1}
    return asking(
        folder,
        captions,
        engine="Writer",
        attempts=2,
        filters=FilterOptions.model_validate(filters | {"min_caption_similarity": -1} | changed),
    )


def test_nothing_is_asked_or_judged_again(tmp_path: Path, encoder: Path) -> None:
    store, settings = ArtifactStore(tmp_path / "root"), uneven(tmp_path / "data", encoder)
    first = run_all(settings, store)
    assert first[0].manifest.metrics["rejected"].keys() >= {"empty", "echo"}
    # What people see of them.
    samples = finished_samples(first[0], 1)
    row, reject = (read_table(first[0].path / name).to_pylist()[0] for name in ("paraphrases", "rejects"))
    assert samples[0] == {"input": row["caption"], "answer": row["paraphrase_1"], "outcome": "kept"}
    rejected = {"input": reject["input"], "answer": reject["answer"] or "", "outcome": reject["reason"]}
    assert rejected in samples and len(samples) <= 40
    lose_artifacts(store)
    again = run_all(settings, store)
    assert contents(again) == contents(first) and figures(again) == [(0, 0), (0, 0)]
    for name in ("captions", "requested", "accepted", "kept", "rejected"):
        assert [a.manifest.metrics[name] for a in again] == [a.manifest.metrics[name] for a in first]
    assert [a.manifest.metrics["cached"] for a in again] == [a.manifest.metrics["requested"] for a in again]
    # A filter of step 2 alone.
    same, second = run_all(uneven(tmp_path / "data", encoder, min_caption_similarity=-0.9), store)
    assert same.fingerprint == first[0].fingerprint
    assert figures([second]) == [(0, first[1].manifest.metrics["filtered"])]


def test_a_filter_of_the_users_own_counts_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing_filters.py"
    module.write_text("def choosy(pair, options):\n    return None\n")
    settings = asking(tmp_path / "data", CARS, filters=FilterOptions(preset="off", extra=("changing_filters:choosy",)))
    store = ArtifactStore(tmp_path / "hashes")
    before = dict(PARAPHRASE_1.sources(Run(settings, store)))
    module.write_text("def choosy(pair, options):\n    return 'no'\n")
    after = dict(PARAPHRASE_1.sources(Run(settings, store)))
    assert list(before) == list(after) == ["filter changing_filters:choosy"] and before != after
    assert PARAPHRASE_1.sources(Run(asking(tmp_path / "data", CARS), store)) == {}


def test_the_files_of_an_encoder_in_a_folder_count(tmp_path: Path, encoder: Path) -> None:
    store, folder = ArtifactStore(tmp_path / "hashes"), shutil.copytree(encoder, tmp_path / "own")

    def sources(preset: str) -> dict[str, str]:
        filters = FilterOptions.model_validate({"preset": preset, "encoder": str(folder)})
        return dict(PARAPHRASE_1.sources(Run(asking(tmp_path / "data", CARS, filters=filters), store)))

    before = sources("capable")
    assert list(before) == ["encoder"]
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert sources("capable") != before
    assert sources("off") == {}


UNUSED: dict[str, Any] = {
    "prompts": "paper",
    "prompt_1": "own {}",
    "prompt_2": "own {}",
    "sampling": SamplingOptions(temperature=0.1, n=7),
    "seed": 5,
    "attempts": 3,
    "precision": "bf16",
    "model": "unused",
}


def test_what_a_file_does_not_look_at_changes_nothing(
    flickr: Path, plain: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    settings = settings_of(flickr)
    for name, value in UNUSED.items():
        for stage in (PARAPHRASE_1, PARAPHRASE_2):
            assert stage.options(Run(settings)) == stage.options(Run(settings_of(flickr, **{name: value}))), name
    # Not even the keys in the artifact, which are made of the requests.
    assert contents(run_all(settings_of(flickr, **UNUSED), ArtifactStore(tmp_path))) == contents(plain)
