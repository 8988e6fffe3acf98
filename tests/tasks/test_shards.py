"""Shards: what is missing is divided by key, and the stage afterwards asks and judges nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from small_runs import HERE, contents, made, settings_of_texts  # pyright: ignore[reportMissingImports]

from paraclip.storage.roots import open_answers, open_store
from paraclip.tasks.requests import ShardJob, plan_shards, run_shard
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError
from paraclip_core.progress import silent

CARS = [f"the car {n} near a beach is {'slow' if n % 8 in (0, 4, 7) else 'fast'}" for n in range(200)]


def settings_of(folder: Path, root: str = "root", captions: int = 200, **changed: Any) -> Settings:
    paraphrase = {"engine": "scripted_engine:Writer", "gates": {"preset": "off"}, **changed}
    return settings_of_texts(folder, CARS[:captions], paraphrase, root, shards=3)


def job_of(settings: Settings, step: int = 1) -> ShardJob | None:
    for name in ("ingest", "paraphrase_1")[:step]:
        made(name, settings)
    run = Run(settings, stages=HERE)
    node = run.node(f"paraphrase_{step}")
    return plan_shards(node, run, run.inputs(node))


def run_all(job: ShardJob) -> list[dict[str, Any]]:
    return [run_shard({**asdict(job), "shard": shard}, silent) for shard in range(job.shards)]


@pytest.mark.parametrize("step", [1, 2])
def test_the_stage_finds_everything_that_its_shards_left(step: int, tmp_path: Path) -> None:
    again = {"attempts": 2, "regenerate": ["empty"], "chunk": 16}
    calm = settings_of(tmp_path, "calm", **again)
    for name in ("ingest", "paraphrase_1", "paraphrase_2"):
        expected = made(name, calm)
        if name == f"paraphrase_{step}":
            break
    settings = settings_of(tmp_path, **again)
    job = job_of(settings, step)
    assert job is not None and job.shards == (3 if step == 1 else 2)
    counts = run_all(job)
    artifact = made(f"paraphrase_{step}", settings)
    metrics, alone = artifact.manifest.metrics, expected.manifest.metrics
    assert contents(artifact) == contents(expected)
    assert (metrics["generated"], metrics["judged"]) == (0, 0)
    assert sum(each["generated"] for each in counts) == alone["generated"] == metrics["requested"]
    assert sum(each["judged"] for each in counts) == alone["judged"]
    assert min(each["generated"] for each in counts) > 30
    # Shards leave no artifact and no intermediate file.
    store = open_store(settings.run.root)
    assert not list(store.unfinished())
    stats = open_answers(store).stats()
    assert stats.rows == stats.keys
    # A shard that is run again finds nothing to do.
    assert [each["generated"] for each in run_all(job)] == [0] * job.shards


@pytest.mark.parametrize(
    ("changed", "run", "answered", "shards"),
    [
        ({}, {}, 0, 3),
        ({}, {"shards": 9}, 0, 3),
        ({}, {"shards": 2}, 0, 2),
        ({}, {"shards": 1}, 0, None),
        # Fifty requests are missing, which one process asks; with further attempts more may be.
        ({}, {}, 150, None),
        ({"attempts": 2}, {}, 150, 3),
        ({"engine": "file", "file": {"path": "captions.csv"}}, {}, 0, None),
    ],
)
def test_how_many_shards_there_are(
    changed: dict[str, Any], run: dict[str, int], answered: int, shards: int | None, tmp_path: Path
) -> None:
    (tmp_path / "captions.csv").write_text("caption,paraphrase_1,paraphrase_2\na,b,c\n")
    if answered:
        for name in ("ingest", "paraphrase_1"):
            made(name, settings_of(tmp_path, captions=answered))
    settings = settings_of(tmp_path, **changed)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update=run)})
    job = job_of(settings)
    assert (None if job is None else job.shards) == shards
    if job is not None:
        # Together they take no more cores than one process would.
        assert job.settings["run"]["threads"] == 1


def test_a_shard_needs_the_rows_that_it_is_cut_from(tmp_path: Path) -> None:
    job = job_of(settings_of(tmp_path))
    assert job is not None
    with pytest.raises(ArtifactError, match=r"the artifact ingest/gone is not under .*same shared folder"):
        run_shard({**asdict(job), "shard": 0, "upstream": "gone"}, silent)
