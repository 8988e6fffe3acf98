"""The paraphrase stage over real vLLM, killed and resumed: no caption is paid for twice."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import EngineError, StageError
from paraclip_core.settings import parse_settings
from tests.kit.processes import alive, below
from tests.kit.waiting import eventually

CHUNK = 4


def settings_of(root: Path, captions: list[str], **engine: Any) -> Settings:
    root.mkdir(parents=True, exist_ok=True)
    (root / "captions.txt").write_text("".join(f"{text}\n" for text in captions))
    paraphrase = {
        "filters": {"preset": "off"},
        "sampling": {"n": 1, "max_tokens": 16},
        "chunk": CHUNK,
    }
    return parse_settings(
        {
            "data": {"root": str(root), "sources": [{"path": "captions.txt"}]},
            "paraphrase": paraphrase | engine,
            "run": {"root": str(root / "runs")},
        }
    )


def keys(root: Path) -> list[bytes]:
    """Keys of every generation that was kept."""
    folder = root / "runs" / "cache" / "segments"
    if not list(folder.glob("*.parquet")):
        return []
    return pq.read_table(folder, columns=["key"]).column("key").to_pylist()


def started(pool: ThreadPoolExecutor, settings: Settings) -> Future[Artifact]:
    return pool.submit(run_stage, "paraphrase_1", Run(settings))


def check(root: Path, fresh: Path, captions: list[str], artifact: Artifact, **engine: Any) -> None:
    """Every caption was answered once, and the same rows come from the kept generations alone."""
    cached = keys(root)
    assert len(cached) == len(set(cached)) == len(captions)
    rows = read_table(artifact.path / "paraphrases").to_pylist()
    assert [row["caption"] for row in rows] == captions
    assert all(row["paraphrase_1"] for row in rows)
    settings = settings_of(fresh, captions, **engine)
    shutil.copytree(root / "runs" / "cache" / "segments", fresh / "runs" / "cache" / "segments")
    run_stage("ingest", Run(settings))
    again = run_stage("paraphrase_1", Run(settings))
    assert again.manifest.metrics["generated"] == 0
    assert again.manifest.files == artifact.manifest.files


@pytest.fixture
def cleaned(captions: list[str]) -> list[str]:
    """Captions that ingest leaves as they are."""
    return [text.removesuffix(".").strip() for text in captions]


def test_a_killed_stage_and_a_killed_server(
    tmp_path: Path, cleaned: list[str], smollm2: str, vllm_options: dict[str, Any]
) -> None:
    chosen = {"engine": "vllm", "model": smollm2, "vllm": vllm_options}
    root = tmp_path / "one"
    settings = settings_of(root, cleaned, **chosen)
    run_stage("ingest", Run(settings))
    with ThreadPoolExecutor(1) as pool:
        # The stage is killed: its engine must not stay behind.
        run = started(pool, settings)
        eventually(lambda: len(keys(root)) >= CHUNK)
        (stage,) = below(os.getpid(), "paraclip.tasks.run.child")
        (engine,) = below(stage, "vllm_server.py")
        os.kill(stage, signal.SIGKILL)
        with pytest.raises(StageError, match="was killed by SIGKILL"):
            run.result()
        eventually(lambda: not alive(engine), seconds=30)
        first = len(keys(root))
        assert CHUNK <= first < len(cleaned)

        # The server is killed: the stage says so and ends.
        run = started(pool, settings)
        eventually(lambda: len(keys(root)) >= first + CHUNK)
        (engine,) = below(os.getpid(), "vllm_server.py")
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(EngineError, match="its process was killed by signal 9"):
            run.result()
        second = len(keys(root))
        assert first + CHUNK <= second < len(cleaned)
        artifact = started(pool, settings).result()
    metrics = artifact.manifest.metrics
    assert (metrics["cached"], metrics["generated"]) == (second, len(cleaned) - second)
    check(root, tmp_path / "two", cleaned, artifact, **chosen)
