"""A run from an existing image index and a log of queries: no pixel is read, nothing is paid for twice."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.storage.features import FeatureStore
from paraclip.storage.parquet import read_table
from paraclip.tasks.plan import plan_run
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, InputError, ParaclipError
from paraclip_core.settings import parse_settings
from tests.kit.small_runs import made
from tests.kit.tiny_run import tiny_run

ANSWERS = {"engine": "tests.kit.scripted_engine:Well", "model": "m", "filters": {"preset": "off"}}


class Home:
    """A base, an index that it made, and a log of queries, as a search team has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scenes = parse_settings(tiny_run(folder / "made", ANSWERS))
        shutil.copyfile(Path(scenes.data.root) / "images.tar", folder / "images.tar")
        for name in ("ingest", "features", "built_in_base"):
            artifact = made(name, scenes)
            if name == "features":
                store = FeatureStore(artifact.path)
                self.features = np.asarray(store.view()[np.arange(len(store))], np.float32)
                self.ids = [f"images/{name}.jpg" for name in store.image_ids]
            if name == "ingest":
                self.captions = read_table(artifact.path / "captions", ["caption", "image_id"]).to_pylist()
            if name == "built_in_base":
                shutil.copytree(artifact.path / "release", folder / "base")
        np.save(folder / "index.npy", 3 * self.features)
        (folder / "ids.txt").write_text("\n".join(self.ids))
        clicks = (f"images/{row['image_id']}.jpg" if n % 3 == 0 else "" for n, row in self.numbered())
        self.log([(row["caption"], click, 1 + n % 4) for click, (n, row) in zip(clicks, self.numbered(), strict=True)])

    def numbered(self) -> Iterable[tuple[int, dict[str, str]]]:
        return enumerate({row["caption"].lower(): row for row in self.captions}.values())

    def log(self, rows: Iterable[tuple[Any, ...]], name: str = "log.csv") -> None:
        with (self.folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("query", "image", "count"), *rows])

    def settings(self, root: str = "root", **changes: Any) -> Settings:
        index = {"features": "index.npy", "ids": "ids.txt", **changes.pop("index", {})}
        source = {"path": changes.pop("log", "log.csv")}
        data = {"root": str(self.folder), "index": index, "sources": [source], "held_out": 0.3, "min_words": 1}
        finetune = {"learning_rate": 1e-3, "epochs": 4, "batch_size": 8, "validation": 0.2, "alpha": {"grid": [0.5]}}
        tree = {
            "name": "log",
            "run": {"root": str(self.folder / root), "threads": 1},
            "data": data | changes.pop("data", {}),
            "paraphrase": ANSWERS,
            "model": {"base": f"local-dir:{self.folder / 'base'}"},
            "finetune": finetune | changes.pop("finetune", {}),
            "evaluate": {"benchmarks": []},
        }
        return parse_settings(tree | changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("search-team"))


def run_of(settings: Settings) -> Run:
    """A run whose stages are all carried out here."""
    return Run(settings, stages={name: replace(stage, isolated=False) for name, stage in stages_of(settings).items()})


def finished(settings: Settings) -> dict[str, Artifact]:
    run = run_of(settings)
    return {name: run_stage(name, run) for name in run.stages}


def test_a_run_needs_no_image(home: Home) -> None:
    artifacts = finished(home.settings())
    features = artifacts["features"]
    summary = json.loads((artifacts["evaluate"].path / "summary.json").read_text())
    page = (artifacts["report"].path / "report.html").read_text()
    assert features.manifest.metrics["trusted"] and not list(features.path.glob("features/*"))
    assert sum(file.size for file in features.manifest.files.values()) < 20_000
    assert {"ao@10", "margin", "paraphrased_query_mrr@10"} <= summary["models"]["tuned"]["held_out_queries"].keys()
    assert "taken on trust" in page and "by how often they are asked" in page
    card = (artifacts["finetune"].path / "release" / "README.md").read_text()
    assert "taken on trust" in card


def parquet_index(home: Home) -> dict[str, str]:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(home.features.reshape(-1)), home.features.shape[1])
    pq.write_table(pa.table({"image_id": home.ids, "vector": vectors}), home.folder / "index.parquet")
    return {"features": "index.parquet", "ids": None}  # pyright: ignore[reportReturnType]


def shards(home: Home) -> dict[str, str]:
    """Two shards with metadata, as clip-retrieval writes them."""
    for number, rows in enumerate((slice(0, 25), slice(25, None))):
        for kind in ("img_emb", "metadata"):
            (home.folder / "shards" / kind).mkdir(parents=True, exist_ok=True)
        np.save(home.folder / f"shards/img_emb/img_emb_{number}.npy", home.features[rows].astype(np.float16))
        names = pa.table({"image_path": home.ids[rows]})
        pq.write_table(names, home.folder / f"shards/metadata/metadata_{number}.parquet")
    return {"features": "shards", "ids": None}  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("written", [parquet_index, shards])
def test_other_kinds_of_index(home: Home, written: Any) -> None:
    store = FeatureStore(run_stage("features", run_of(home.settings("kinds", index=written(home)))).path)
    assert store.image_ids == home.ids
    found = np.asarray(store.view()[np.arange(len(store))], np.float32)
    assert np.abs(found - home.features).max() < 2e-3


def test_images_are_compared_with_the_index(home: Home) -> None:
    settings = home.settings("compared", index={"images": "images.tar"})
    metrics = run_stage("features", run_of(settings)).manifest.metrics
    assert (metrics["trusted"], metrics["compared_images"]) == (False, 60)


def broken(home: Home, kind: str) -> Settings:
    index: dict[str, Any] = {"features": "bad.npy", "ids": "bad.txt"}
    features, ids = home.features.copy(), list(home.ids)
    match kind:
        case "width":
            features = features[:, :-2]
        case "tower":
            features = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
        case "shuffled":
            ids, index["images"] = ids[1:] + ids[:1], "images.tar"
        case "columns":
            features = np.asfortranarray(features)
        case "nan":
            features[7] = np.nan
        case "zeros":
            features[8] = 0
        case "repeated":
            ids[3] = ids[5]
        case "short":
            ids = ids[:-1]
        case _:
            home.log([(f"a car and {n} dogs", f"other/{n}", 1) for n in range(40)], "bad.csv")
    np.save(home.folder / "bad.npy", features)
    (home.folder / "bad.txt").write_text("\n".join(ids))
    return home.settings(f"bad-{kind}", index=index, log="bad.csv" if kind == "clicks" else "log.csv")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("width", "126 numbers a row, but .* embeds into 128"),
        ("tower", "nothing to do with the texts of"),
        ("shuffled", "ids is in another order than the rows, or another model made the index"),
        ("columns", "stored column by column"),
        ("nan", r"row 7 \(.*\) holds NaN"),
        ("zeros", r"row 8 \(.*\) holds nothing but zeros"),
        ("repeated", "rows 3 and 5 have the same id"),
        ("short", "names 59 images, but .* has features of 60"),
        ("clicks", "none of .* clicked images is in the index"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(home: Home, kind: str, message: str) -> None:
    settings = broken(home, kind)
    with pytest.raises(ParaclipError, match=message):
        plan_run(Run(settings))
        finished(settings)
    assert not list((home.folder / f"bad-{kind}").glob("artifacts/paraphrase_1/*"))


def test_everything_that_is_missing_is_named_at_once(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no\.npy.*no\.txt.*photos"):
        plan_run(Run(home.settings(index={"features": "no.npy", "ids": "no.txt", "images": "photos"})))


def test_a_base_and_recipe_that_suit_no_index_are_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match="index of a model that exists"):
        home.settings(model={"base": "built-in"})
    with pytest.raises(ConfigError, match="losses against images"):
        home.settings(finetune={"recipe": "published"})


def test_tomorrows_log_costs_what_is_new(home: Home) -> None:
    rows = [
        (f"a {colour} {thing}", "", 2) for colour in ("red", "old", "tiny") for thing in ("car", "boat", "dog", "cat")
    ]
    home.log(rows, "growing.csv")
    run = run_of(home.settings("night", log="growing.csv"))
    for name in ("ingest", "paraphrase_1", "paraphrase_2", "queries", "features"):
        run_stage(name, run)
    home.log([*rows[1:], ("a dark forest", "", 1), ("two small birds", "", 9)], "growing.csv")
    plan = {stage.stage: stage for stage in plan_run(Run(home.settings("night", log="growing.csv"))).stages}
    new = sum(plan[name].requests or 0 for name in ("paraphrase_1", "queries"))
    assert plan["features"].state == "cached"
    assert 2 <= new <= 4, "each new query is asked about once, or twice if it is held out"


def test_personal_queries_never_leave_ingest(home: Home) -> None:
    texts = [
        "mail jo@example.org now",
        "call +49 170 1234567",
        "http://a.b/c",
        "IMG_20230401",
        "zxqwvbnmkj",
        "a blue car",
    ]
    (home.folder / "private.txt").write_text("\n".join([*texts, "A Blue  car", "two dogs"]))
    artifact = made("ingest", home.settings("private", log="private.txt"))
    kept = read_table(artifact.path / "captions", ["caption", "count"]).to_pylist()
    reasons = read_table(artifact.path / "rejects", ["caption_raw", "reason"]).to_pylist()
    assert kept == [{"caption": "a blue car", "count": 2}, {"caption": "two dogs", "count": 1}]
    assert {row["caption_raw"]: row["reason"] for row in reasons} == dict(
        zip(texts, ["personal", "personal", "identifier", "identifier", "rare_token"], strict=False)
    )


def test_a_log_without_any_query_is_refused(home: Home) -> None:
    (home.folder / "mails.txt").write_text("jo@example.org\nann@example.org\n")
    (home.folder / "empty.csv").write_text("query,count\n")
    for name, message in (("mails.txt", "personal 2"), ("empty.csv", "there is nothing to run on")):
        with pytest.raises((InputError, ConfigError), match=message):
            plan_run(Run(home.settings("nothing", log=name)))
