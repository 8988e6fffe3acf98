"""The evaluate stage over a small store: real captions and sentence pairs, a real small model, stored features."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.parquet import read_table, write_table
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Node, Run
from paraclip.tasks.stages import evaluate as evaluate_stage
from paraclip.tasks.stages.evaluate import EVALUATE, check_benchmarks
from paraclip.tasks.stages.training import BUILT_IN_BASE, FINETUNE
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.export import save_release
from paraclip_core.clip.model import image_encoder_hash
from paraclip_core.config import Settings
from paraclip_core.errors import BenchmarkError, ConfigError, ModelError
from paraclip_core.evaluation.churn import Churn
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.outcomes import from_table
from paraclip_core.progress import Fact
from paraclip_core.tables import PER_QUERY, QUERIES
from tests.tasks.builders import captions_of, committed, write_features

World = tuple[ArtifactStore, dict[str, Artifact]]
IMAGES = 30
MODEL = {"text_width": 64, "text_layers": 1, "embed_dim": 32}


def settings_with(root: Path, benchmarks: list[dict[str, Any]] | None = None, **more: Any) -> Settings:
    benchmarks = benchmarks or [
        {"name": "captions", "kind": "paraphrased_retrieval"},
        {"name": "retrieval", "kind": "retrieval"},
        {"name": "sts", "kind": "sts", "path": "pairs.tsv"},
        {"name": "gone", "kind": "sts", "path": "gone.tsv", "optional": True},
    ]
    return Settings.model_validate(
        {
            "model": MODEL,
            "data": {"root": str(root), **more},
            "evaluate": {"benchmarks": benchmarks, "split": "val", "queries": None},
            "run": {"device": "cpu", "threads": 1},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A data folder with the first real sentence pairs."""
    folder = tmp_path_factory.mktemp("data")
    with (data_root / "sts" / "raw" / "STSB-dev.tsv").open("rb") as file:
        (folder / "pairs.tsv").write_bytes(b"".join(file.readline() for _ in range(200)))
    return folder


def captions_table(data_root: Path) -> pa.Table:
    raw = json.loads((data_root / "flickr8k" / "dataset_flickr8k.json").read_bytes())
    images = [image for image in raw["images"] if image["split"] == "val"][:IMAGES]
    return captions_of(
        {
            "image_id": None if number == 0 and position == 4 else image["filename"],
            "caption": sentence["raw"],
            "split": "val" if number < IMAGES - 2 else "train",
        }
        for number, image in enumerate(images)
        for position, sentence in enumerate(image["sentences"])
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> World:
    store = ArtifactStore(tmp_path_factory.mktemp("root"))
    clip = built_in_clip(settings_with(data_root).model)
    table = captions_table(data_root)
    ids = list(dict.fromkeys(filter(None, table["image_id"].to_pylist())))

    def ingest(out: Path) -> None:
        write_table(out / "captions" / "part-00000.parquet", table)

    def features(out: Path) -> None:
        write_features(out, ids[:1] + ids[2:], np.random.default_rng(0).normal(size=(len(ids) - 1, 32)))

    def release(out: Path) -> None:
        save_release(clip, out / "release", "card")
        points = [{"alpha": 0.0, "ao@10": 40.0}, {"alpha": 0.5, "ao@10": 42.0}]
        tried = {"recipe": "ranking", "learning_rate": 1e-3}
        chosen = {"candidates": [tried | {"alphas": points}], "chosen": tried | {"alpha": 0.5}}
        (out / "candidates.json").write_text(json.dumps(chosen))

    def commit(stage: str, write: Callable[[Path], object], **metrics: str) -> None:
        artifacts[stage] = committed(store, stage, stage, write=write, metrics=metrics)

    artifacts: dict[str, Artifact] = {}
    commit("ingest", ingest)
    commit("features", features, image_encoder_hash=image_encoder_hash(clip))
    commit("built_in_base", release)
    weight: Any = clip.model.token_embedding.weight  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        torch.manual_seed(0)
        weight.add_(0.05 * torch.randn_like(weight))
    commit("finetune", release)
    return store, artifacts


def run(
    world: World,
    settings: Settings,
    name: str,
    progress: Callable[..., None] | None = None,
    **other: Artifact,
) -> Artifact:
    store, artifacts = world
    draft = Draft("evaluate", name, EVALUATE.version, {}, {})
    inputs = {**artifacts, **other}
    return execute(EVALUATE, draft, Run(settings, store), inputs, *([progress] if progress else []))


@pytest.fixture(scope="module")
def whole(world: World, folder: Path) -> Artifact:
    return run(world, settings_with(folder), "whole")


def test_what_it_leaves_behind(whole: Artifact) -> None:
    comparison = json.loads((whole.path / "comparison.json").read_text())
    summary = json.loads((whole.path / "summary.json").read_text())
    assert {row["benchmark"] for row in comparison["rows"]} == {"captions", "retrieval", "sts"}
    assert "gone was left out: its path is absent" in comparison["notes"]
    assert summary["verdict"] == comparison["verdict"] == whole.manifest.metrics["verdict"]
    assert summary["fingerprints"] == {name: name for name in ("ingest", "features", "built_in_base", "finetune")}
    protocol = comparison["protocols"]["captions"]
    # 28 images of the split, one without features, one with a caption of no image: 26 · 10 + 6 pairs.
    assert (protocol["images"], protocol["pairs"] + protocol["pairs_with_equal_texts"]) == (27, 266)
    assert protocol["pairs_without_image"] == 10
    # Of the captions of the pairs, each once; their overlap is that of the stored lists.
    churn = Churn.from_json(json.loads((whole.path / "churn.json").read_text()))
    assert summary["churn"] == churn.summary() and churn.benchmark == "captions"
    table = pq.read_table(whole.path / "per_query" / "captions.parquet")
    lists = {row["caption"]: (set(row["base_caption_top"]), set(row["tuned_caption_top"])) for row in table.to_pylist()}
    assert (churn.queries, churn.images) == (len(lists), 27)
    assert churn.overlap == pytest.approx(10 * np.mean([len(a & b) for a, b in lists.values()]), abs=0.006)
    assert churn.known is not None and churn.known.queries == churn.queries and churn.thresholds
    assert table.schema.equals(PER_QUERY)
    assert table.num_rows == protocol["pairs"]
    for model, measured in zip(
        ("base", "tuned"), from_table(pq.read_table(whole.path / "samples/sts.parquet")), strict=True
    ):
        assert measured.metrics["spearman"] == pytest.approx(summary["models"][model]["sts"]["spearman"], abs=1e-5)


def files_of(artifact: Artifact) -> Mapping[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files}


def test_an_interrupted_stage_goes_on(
    world: World, whole: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    encode = ModelEncoder.texts
    monkeypatch.setattr(
        ModelEncoder, "texts", lambda self, texts, watch: measured.append(texts[0]) or encode(self, texts, watch)
    )

    def stop(done: int, total: int | None, **facts: Fact) -> None:
        if done == 4:
            raise KeyboardInterrupt

    settings = settings_with(folder)
    with pytest.raises(KeyboardInterrupt):
        run(world, settings, "cut", stop)
    again = run(world, settings, "cut")
    # Three benchmarks with two models, each once, and the queries whose results are compared with both.
    assert len(measured) == 6 + 2
    assert files_of(again) == files_of(whole)
    assert run(world, settings, "cut").manifest == again.manifest


def test_a_file_of_paraphrased_queries(world: World, data_root: Path, tmp_path: Path) -> None:
    rows = captions_table(data_root).to_pylist()
    rows = [row for row in rows if row["image_id"]]
    lines = [
        {"image_id": r["image_id"], "caption": r["caption"], "paraphrased_query": f"so: {r['caption']}"} for r in rows
    ]
    (tmp_path / "paraphrased_queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    benchmark = {"name": "paraphrased_queries", "kind": "paraphrased_retrieval", "path": "paraphrased_queries.jsonl"}
    artifact = run(world, settings_with(tmp_path, [benchmark]), "paraphrased_queries")
    notes = json.loads((artifact.path / "comparison.json").read_text())["protocols"]["paraphrased_queries"]
    # The file's two images of another split join the pool.
    assert notes["images"] == 29


def test_paraphrased_queries_of_images_that_no_run_ingested(world: World, data_root: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (data_root / "coco" / "coco_val2017_mini.jsonl").read_text().splitlines()]
    lines = [{"image_id": r["image"], "caption": r["captions"][0], "paraphrased_query": r["captions"][1]} for r in rows]
    (tmp_path / "paraphrased_queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    benchmark = {"name": "paraphrased_queries", "kind": "paraphrased_retrieval", "path": "paraphrased_queries.jsonl"}
    settings = settings_with(tmp_path, [benchmark])
    settings = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"split": "test"})})
    with pytest.raises(BenchmarkError, match="benchmark 'paraphrased_queries': none of 33 images has features"):
        run(world, settings, "nowhere")
    (tmp_path / "images.tar").symlink_to(data_root / "coco" / "coco_val2017_mini.tar")
    artifact = run(world, settings, "beside")
    assert (
        json.loads((artifact.path / "comparison.json").read_text())["protocols"]["paraphrased_queries"]["images"] == 33
    )


def held_out(world: World, name: str, count: int, **metrics: int) -> Artifact:
    """The artifact of the stage `queries` for the first images of the split."""
    rows = read_table(world[1]["ingest"].path / "captions").to_pylist()
    chosen = {row["image_id"]: row for row in rows if row["split"] == "val" and row["image_id"]}
    queries = [
        {name: row[name] for name in ("caption_id", "image_id", "caption", "license")}
        | {"paraphrase_1": "plain", "paraphrased_query": f"so: {row['caption']}"}
        | {"generation_1": bytes(16), "generation_2": bytes(16)}
        for row in list(chosen.values())[:count]
    ]

    def write(out: Path) -> None:
        write_table(out / "queries.parquet", pa.Table.from_pylist(queries, QUERIES))

    return committed(world[0], "queries", name, write=write, metrics={"captions": count, "accepted": count} | metrics)


def test_held_out_queries_stand_beside_the_benchmarks_of_the_user(world: World, folder: Path) -> None:
    settings = settings_with(folder, [{"name": "sts", "kind": "sts", "path": "pairs.tsv"}])
    plain = run(world, settings, "without-queries")
    assert "AO@10 of the kind paraphrased_retrieval was not measured" in plain.manifest.metrics["reason"]
    evaluation = run(world, settings, "with-queries", queries=held_out(world, "twenty", 20))
    comparison = json.loads((evaluation.path / "comparison.json").read_text())
    assert {row["benchmark"] for row in comparison["rows"]} == {"sts", "held_out_queries"}
    # The pool is all images of the split with features: 28, but for the second.
    notes = comparison["protocols"]["held_out_queries"]
    assert (notes["images"], notes["pairs"], notes["pairs_without_image"]) == (27, 19, 1)
    assert "was not measured" not in comparison["reason"] and "held_out_queries" in comparison["reason"]
    table = read_table(evaluation.path / "per_query" / "held_out_queries.parquet")
    assert table.schema.equals(PER_QUERY) and table["paraphrased_query"][0].as_py().startswith("so: ")
    default = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"queries": {}})})
    assert EVALUATE.inputs(default) == ("ingest", "queries", "features", "built_in_base", "finetune")
    # What decides the queries is in the fingerprint of their own stage.
    assert EVALUATE.options(Run(default)) == EVALUATE.options(Run(settings))


@pytest.mark.parametrize(
    ("count", "metrics", "reason"),
    [
        (0, {}, "no caption of split 'val' (evaluate.split) has an image and is not trained on"),
        (0, {"captions": 9, "rejected": {"echo": 9}}, "none of its 9 captions has an accepted paraphrase (echo 9)"),
        (1, {}, "are of one image"),
    ],
)
def test_queries_that_cannot_be_measured_are_left_out_with_a_reason(
    world: World, folder: Path, count: int, metrics: dict[str, Any], reason: str
) -> None:
    queries = held_out(world, f"few-{count}-{len(metrics)}", count, **metrics)
    benchmark = {"name": "sts", "kind": "sts", "path": "pairs.tsv"}
    evaluation = run(world, settings_with(folder, [benchmark]), f"out-{queries.fingerprint}", queries=queries)
    notes = json.loads((evaluation.path / "comparison.json").read_text())["notes"]
    (note,) = [note for note in notes if note.startswith("held_out_queries was left out: ")]
    assert reason in note and evaluation.manifest.metrics["skipped"] == ["held_out_queries"]


def test_features_of_another_encoder_are_refused(world: World, folder: Path) -> None:
    features = world[1]["features"]
    other = dataclasses.replace(
        features, manifest=dataclasses.replace(features.manifest, metrics={"image_encoder_hash": "0" * 32})
    )
    with pytest.raises(ModelError, match="the stored image features come from image encoder 0000"):
        run(world, settings_with(folder), "encoder", features=other)


def test_what_cannot_be_measured_is_found_before_a_model_is_trained(
    world: World, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifacts = world
    (tmp_path / "pairs.tsv").write_text("score\tsentence1\tsentence2\n1\ta dog\n")
    image = captions_table(data_root)["image_id"][0].as_py()
    row = {"image_id": image, "caption": "a dog runs", "paraphrased_query": "a hound runs"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    negative = {"filename": "1.jpg", "caption": "a dog", "negative_caption": "no dog"}
    (tmp_path / "add_obj.json").write_text(json.dumps([negative, negative | {"filename": "2.jpg"}]))
    (tmp_path / "swap_att.json").write_text(json.dumps([negative]))
    # Those of another run, which lie in the same store.
    monkeypatch.setattr(store, "expect", lambda name, *_: artifacts[name])
    monkeypatch.setattr(Run, "node", lambda run, name: Node(run.stages[name], Draft(name, "new", 1, {}, {})))
    for kind, path, reason in (
        ("sts", "pairs.tsv", r"benchmark 'b': .*pairs\.tsv, line 2: 2 fields"),
        ("paraphrased_retrieval", "pairs.jsonl", "benchmark 'b': .* are of one image"),
        ("sugarcrepe", ".", "all rows of category 'swap_att' are of one image, '1.jpg'"),
    ):
        with pytest.raises(BenchmarkError, match=reason):
            settings = settings_with(tmp_path, [{"name": "b", "kind": kind, "path": path}])
            check_benchmarks(Run(settings, store))
    assert check_benchmarks(Run(settings_with(tmp_path, [{"name": "r", "kind": "retrieval"}]), store)) == []
    settings = settings_with(data_root, [{"name": "few", "kind": "paraphrased_retrieval"}])
    settings = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"split": "train"})})
    for stage in (BUILT_IN_BASE, FINETUNE):
        with pytest.raises(BenchmarkError, match="benchmark 'few': its pool has 2 images; expected at least 10"):
            stage.check_before(Run(settings, store))


def test_an_interpolation_of_nothing_is_explained(world: World, whole: Artifact, folder: Path) -> None:
    tuned = world[1]["finetune"]
    kept_base = dataclasses.replace(tuned, manifest=dataclasses.replace(tuned.manifest, metrics={"alpha": 0.0}))
    evaluation = run(world, settings_with(folder), "alpha", finetune=kept_base)
    summary = json.loads((evaluation.path / "summary.json").read_text())
    assert summary["reason"].startswith("the tuned model is the base (α = 0)")
    assert json.loads((evaluation.path / "comparison.json").read_text())["reason"] == summary["reason"]
    assert summary["reason"].endswith(whole.manifest.metrics["reason"])
    assert "α" not in whole.manifest.metrics["reason"]


def test_fingerprints_follow_contents_not_places(data_root: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "hashes")

    def seen(folder: Path, path: str) -> tuple[Any, Any]:
        settings = settings_with(folder, [{"name": "s", "kind": "sts", "path": path, "optional": True}])
        return EVALUATE.options(Run(settings)), EVALUATE.sources(Run(settings, store))

    original = seen(data_root, "sts/raw/STSB-test.tsv")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "STSB-test.tsv"
    shutil.copy(data_root / "sts/raw/STSB-test.tsv", copy)
    assert seen(tmp_path, "copy/STSB-test.tsv") == original
    with copy.open("a") as file:
        file.write("\n")
    assert seen(tmp_path, "copy/STSB-test.tsv")[1] != original[1]
    assert seen(tmp_path, "gone.tsv")[1] == {"s": "absent"}
    pictures = {"name": "r", "kind": "retrieval", "path": "no.csv", "images": "pics"}
    there = {"name": "t", "kind": "sts", "path": "copy/STSB-test.tsv"}
    settings = settings_with(tmp_path, [{"name": "s", "kind": "sts", "path": "gone.tsv"}, there, pictures])
    names = (
        r"gone\.tsv: benchmark 's' \(STS\) \[evaluate\.benchmarks\[0\]\.path\]\n.*no\.csv: .*\n.*pics: images of bench"
    )
    with pytest.raises(ConfigError, match=names):
        EVALUATE.sources(Run(settings, store))


def test_a_benchmark_whose_images_lie_beside_its_folder_has_a_fingerprint(tmp_path: Path) -> None:
    """COCO's own layout."""
    folders = [tmp_path / name for name in ("one", "other")]
    for root in folders:
        for number in range(2):
            picture = root / "coco/val2017" / f"{number}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(picture)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(2)]
        captions = [{"image_id": number, "caption": f"picture {number}"} for number in range(2)]
        (root / "coco/annotations").mkdir()
        path = root / "coco/annotations/captions_val2017.json"
        path.write_text(json.dumps({"images": images, "annotations": captions}))
    coco = [{"name": "coco", "kind": "retrieval", "path": "coco/annotations/captions_val2017.json"}]
    store = ArtifactStore(tmp_path / "hashes")
    one, other = (EVALUATE.sources(Run(settings_with(root, coco), store)) for root in folders)
    assert one == other and len(one["coco"]) == 64


def test_a_base_in_a_folder_is_not_to_be_trained_longer_and_results_do_not_tell_where_it_lies(
    world: World, whole: Artifact, folder: Path
) -> None:
    store, artifacts = world
    base = artifacts["built_in_base"].path / "release"
    settings = settings_with(folder)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"base": f"local-dir:{base}"})})
    inputs = {name: artifact for name, artifact in artifacts.items() if name != "built_in_base"}
    local = execute(EVALUATE, Draft("evaluate", "local", EVALUATE.version, {}, {}), Run(settings, store), inputs)
    reasons = [artifact.manifest.metrics["reason"] for artifact in (whole, local)]
    assert all("the base is near chance" in reason and "take a pretrained one" in reason for reason in reasons)
    assert ["built_in_base.epochs" in reason for reason in reasons] == [True, False]
    assert not any(str(base) in path.read_text() for path in local.path.rglob("*.json"))


def test_the_options_of_a_benchmark_count(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    store = ArtifactStore(tmp_path / "hashes")

    def seen(**options: Any) -> tuple[Any, Any]:
        benchmark = {"name": "mine", "kind": "paraphrased_retrieval", "path": "pairs.jsonl", "options": options}
        run = Run(settings_with(tmp_path, [benchmark]), store)
        return EVALUATE.options(run), EVALUATE.sources(run)

    before = seen()
    assert set(before[1]) == {"mine"} and before[0]["benchmarks"][0]["options"] == {}
    assert seen(pool="all")[0] != before[0] and seen(pool="all")[1] == before[1]


def test_the_gain_over_the_control_is_measured_on_the_same_queries(world: World, folder: Path) -> None:
    plain = settings_with(folder).model_dump(mode="json")
    plain["evaluate"]["control"] = True
    # A control that learned the same is the tuned model.
    evaluation = run(world, Settings.model_validate(plain), "control", control=world[1]["finetune"])
    summary = json.loads((evaluation.path / "summary.json").read_text())
    assert summary["models"]["control"] == summary["models"]["tuned"]
    words = "AO@10 of held-out training captions changes by +2.0 in the control and by +2.0 in the tuned model"
    tuned = world[1]["finetune"]
    assert f"(ranking at 0.001, α = 0.5), {words}" in str(evaluate_stage._at_point(tuned, tuned))
    assert all(figures == [0.0] * 3 for of in summary["over_control"].values() for figures in of.values())
    assert summary["control"] == {
        name: {metric: [delta, *summary["intervals"][name][metric]] for metric, delta in of.items()}
        for name, of in summary["deltas"].items()
    }
