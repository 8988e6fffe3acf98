"""A real server, workers and browser: a killed stage is retried, and goes on; so does the run after a cancelled one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai_server import Fault, OpenAIServer, well  # pyright: ignore[reportMissingImports]
from PIL import Image
from pyarrow.parquet import read_metadata
from served import Api, command_of, environment_of, log_in, processes, serving
from waiting import eventually  # pyright: ignore[reportMissingImports]

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.run.child import log_path
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.settings import parse_settings

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

BEFORE = ("ingest", "paraphrase_1", "paraphrase_2", "features", "bootstrap")
COLOURS = ("red", "blue", "green", "white", "black", "orange")
THINGS = {"ball": "sphere", "dog": "puppy", "car": "vehicle", "tree": "plant", "house": "home", "boat": "vessel"}


def make_data(folder: Path) -> None:
    """36 tiny images with a caption and two paraphrases each, the last six held out."""
    (folder / "images").mkdir(parents=True)
    chance = random.Random(1)
    rows = []
    for number, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS):
        name = f"{number:02d}.png"
        Image.new("RGB", (32, 32), tuple(chance.choices(range(256), k=3))).save(folder / "images" / name)
        row = {"image": name, "caption": f"a {colour} {thing}", "split": "val" if number >= 30 else "train"}
        rows.append(
            row | {"paraphrase_1": f"one {colour} {thing} outside", "paraphrase_2": f"the {THINGS[thing]} is {colour}"}
        )
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_run(root: Path, data: Path) -> dict[str, Any]:
    """A run of seconds, except that fine-tuning takes long enough to be killed half-way."""
    return {
        "name": "e2e",
        "data": {"root": str(data), "sources": [{"path": "captions.jsonl", "images": "images"}]},
        "paraphrase": {"engine": "file", "file": {"path": "captions.jsonl"}, "gates": {"preset": "off"}},
        "model": {"base": "embedded", "text_width": 64, "text_layers": 1, "embed_dim": 32},
        "bootstrap": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "finetune": {"epochs": 60, "batch_size": 8, "checkpoint_steps": 5, "precision": "fp32"},
        "evaluate": {"benchmarks": [{"name": "captions", "kind": "retrieval"}]},
        "run": {"placement": "deployments", "threads": 1, "root": str(root)},
    }


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path / "root", tmp_path) as api:
        yield api


def stage_processes(root: Path) -> dict[str, int]:
    """The children in which workers below this root carry out stages, by stage."""
    children = {}
    for pid in processes():
        command = command_of(pid).split()
        if "paraclip.tasks.run.child" in command and environment_of(pid).get("PARACLIP_ROOT") == str(root):
            children[json.loads(Path(command[-1]).read_text())["request"]["draft"]["stage"]] = pid
    return children


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def press_retry(api: Api, run: str) -> None:
    """Log in and retry a run in the UI as a user would."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(180_000)
        log_in(page, api)
        page.goto(f"{api.url}/v2/runs/flow-run/{run}")
        page.get_by_role("button", name="Open menu").click()
        page.get_by_role("menuitem", name="Retry").click()
        dialog = page.get_by_role("alertdialog")
        dialog.get_by_role("button", name="Retry").click()
        page.locator("[data-sonner-toast]").get_by_text("scheduled for retry").wait_for()
        browser.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_killed_stage_is_retried_in_the_ui(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root, data = tmp_path / "root", tmp_path / "data"
    make_data(data)
    plain = tiny_run(root, data)
    settings, store = parse_settings(plain), ArtifactStore(root)

    # What comes before fine-tuning is made while the server starts.
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(lambda: [run_stage(name, Run(settings)) for name in BEFORE])
        api: Api = request.getfixturevalue("stack")
        made = {artifact.stage: (artifact.path / "manifest.json").stat().st_mtime_ns for artifact in ahead.result()}

    pipeline = api.run_deployment("pipeline", plain)
    fingerprint = Run(settings, store).nodes["finetune"].fingerprint
    work = store.work_path("finetune", fingerprint) / "scratch" / "checkpoints"
    # Not any file: one that is being written does not count, and the killed run could not go on from it.
    eventually(lambda: any(work.glob("step-*.safetensors")), "fine-tuning left no checkpoint")
    child = stage_processes(root)["finetune"]
    os.kill(parent_of(child), signal.SIGKILL)

    eventually(lambda: command_of(child) == "", "the child outlived its killed parent", 10)
    eventually(lambda: api.state(pipeline) == "Failed", "the pipeline did not see that its stage was killed")
    killed = [run for run in api.runs() if run["flow"] == "finetune"]
    assert [run["state"]["name"] for run in killed] == ["Crashed"]

    # Prefect looks for hooks in a process of its own, which must find the flow's modules.
    assert "ModuleNotFoundError" not in (root / "logs" / "prefect-paraclip-gpu.log").read_text()

    press_retry(api, pipeline)
    eventually(lambda: api.state(pipeline) == "Completed", "the retried pipeline did not complete", 300)

    runs = {run["flow"]: run for run in api.runs()}
    assert len(runs) == len(api.runs()), "no stage has two runs"
    assert runs["pipeline"]["run_count"] == 2
    assert runs["finetune"]["id"] == killed[0]["id"] and runs["finetune"]["run_count"] == 2
    assert not set(BEFORE) & set(runs), "finished stages started nothing"
    for stage, changed in made.items():
        found = store.list(stage)
        assert len(found) == 1 and (found[0].path / "manifest.json").stat().st_mtime_ns == changed
    log = log_path(store, "finetune", fingerprint).read_text()
    assert log.count(" starts in process ") == 2 and "going on after step" in log
    assert (root / "results" / "e2e" / "report.html").is_file()
    keys = {artifact["key"] for artifact in api.call("artifacts/latest/filter", {})}
    assert {"e2e-stages", "e2e-comparison", "e2e-report", "e2e-finetune-progress"} <= keys


CHUNK = 4
"""Requests, all of which are asked at the same time."""


def side_by_side(root: Path, data: Path, url: str) -> dict[str, Any]:
    """A run that trains its base model while it asks a server."""
    settings = tiny_run(root, data)
    server = {"base_url": url, "concurrency": CHUNK, "retries": 0}
    settings["paraphrase"] = {"engine": "openai", "model": "smol", "prompts": "paper", "chunk": CHUNK, "openai": server}
    settings["paraphrase"] |= {"gates": {"preset": "off"}, "sampling": {"n": 1}, "attempts": 1}
    settings["bootstrap"] |= {"epochs": 100}
    settings["finetune"] = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    return settings | {"name": "cancelled", "run": settings["run"] | {"placement": "inline"}}


@pytest.mark.nightly
def test_a_cancel_stops_stages_side_by_side_and_the_next_run_goes_on(tmp_path: Path, stack: Api) -> None:
    root, data, going = tmp_path / "root", tmp_path / "data", threading.Event()
    make_data(data)
    with OpenAIServer() as engine:

        def say_nothing(handler: Any) -> None:
            going.wait(600)
            handler.close_connection = True

        def answer(asked: dict[str, Any]) -> dict[str, Any] | Fault:
            return well(asked) if going.is_set() or engine.asked.index(asked) < CHUNK else say_nothing

        engine.answer = answer
        plain = side_by_side(root, data, engine.url)
        run = stack.run_deployment("pipeline", plain)
        fingerprint = Run(parse_settings(plain)).node("bootstrap").fingerprint
        folder = ArtifactStore(root).work_path("bootstrap", fingerprint) / "scratch" / "checkpoints"
        eventually(lambda: any(folder.glob("step-*.safetensors")), "no checkpoint")
        children = eventually(lambda: len(both := stage_processes(root)) == 2 and both, "not side by side")
        segments = root / "cache" / "segments"
        eventually(
            lambda: sum(read_metadata(part).num_rows for part in segments.rglob("*.parquet")) == CHUNK, "no answers"
        )
        eventually(lambda: engine.under_way, "no requests")
        # Short enough for a test, training waits here for its end.
        os.kill(children["bootstrap"], signal.SIGSTOP)
        checkpoints = set(folder.glob("step-*.safetensors"))
        cancel(stack, run)
        eventually(lambda: asked_to_end(children["bootstrap"]), "its end was not asked for")
        os.kill(children["bootstrap"], signal.SIGCONT)
        eventually(lambda: stack.state(run) == "Cancelled", "it is not cancelled")
        assert not any(map(command_of, children.values()))
        assert set(folder.glob("step-*.safetensors")) - checkpoints, "the last step was not saved"
        ended = {"bootstrap": "Cancelled", "paraphrase_1": "Cancelled"}
        eventually(lambda: ended.items() <= task_states(stack, run).items(), "the run's page says something else")

        going.set()
        later = stack.run_deployment("pipeline", plain)
        eventually(lambda: stack.state(later) in ("Completed", "Failed", "Crashed"), "it did not end")
        assert stack.state(later) == "Completed"
        log = log_path(ArtifactStore(root), "bootstrap", fingerprint).read_text()
        assert log.count(" starts in process ") == 2 and "going on after step" in log
        assert set(engine.answered.values()) == {1}, "an answer was paid for twice"


def task_states(api: Api, run: str) -> dict[str, str]:
    tasks = api.call("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {task["name"]: task["state"]["name"] for task in tasks}


def cancel(api: Api, run: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "prefect", "flow-run", "cancel", run]
    subprocess.run(command, check=True, env={**os.environ, **api.variables}, timeout=300)


def asked_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is stopped."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)
