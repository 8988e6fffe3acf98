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
import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.storage.features import FeatureStore
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.config import Settings
from paraclip_core.settings import parse_settings
from tests.kit.small_runs import made
from tests.kit.tiny_run import tiny_run

ANSWERS = {"engine": "tests.kit.scripted_engine:Well", "model": "m", "filters": {"preset": "off"}}


class Home:
    """A base, an index that it made, and a log of queries, as a search team has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scenes = parse_settings(tiny_run(folder / "made", ANSWERS))
        for name in ("scenes", "ingest", "features", "built_in_base"):
            artifact = made(name, scenes)
            if name == "features":
                store = FeatureStore(artifact.path)
                self.features = np.asarray(store.view()[np.arange(len(store))], np.float32)
                self.ids = store.image_ids
            if name == "ingest":
                self.captions = read_table(artifact.path / "captions", ["caption", "image_id"]).to_pylist()
            if name == "scenes":
                shutil.copyfile(artifact.path / "images.tar", folder / "images.tar")
            if name == "built_in_base":
                shutil.copytree(artifact.path / "release", folder / "base")
        np.save(folder / "index.npy", 3 * self.features)
        (folder / "ids.txt").write_text("\n".join(self.ids))
        self.log([(row["caption"], row["image_id"] if n % 3 == 0 else "", 1 + n % 4) for n, row in self.numbered()])

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


def finished(settings: Settings) -> dict[str, Artifact]:
    """All stages of a run, carried out here."""
    stages = {name: replace(stage, isolated=False) for name, stage in stages_of(settings).items()}
    run = Run(settings, stages=stages)
    return {name: run_stage(name, run) for name in stages}


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
