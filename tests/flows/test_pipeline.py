"""The flows in a Prefect test server, over finished stages and over one that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client, task
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.states import Completed, Running, Suspended

from paraclip.flows import pause
from paraclip.flows.pipeline import pipeline, run_stages
from paraclip.flows.stages import STAGE_FLOWS
from paraclip.tasks.run.run import Node
from paraclip_core.errors import (
    AwayError,
    BenchmarkError,
    ConfigError,
    CrashedError,
    EngineError,
    InputError,
)
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer
from tests.kit.tiny_run import served

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect")]


def shown(key: str) -> Any:
    """The newest artifact of this key in the UI."""
    artifact: Any = Artifact.get(key)
    return None if artifact is None else json.loads(artifact.data) if artifact.type == "table" else artifact.data


def test_a_pipeline_of_finished_stages_does_nothing_and_shows_it(finished_run: Callable[..., Any]) -> None:
    run = finished_run("name=shown")
    outcome: Any = pipeline(settings=run.settings)
    assert {row["state"] for row in outcome["stages"]} == {"cached"}
    assert [row["stage"] for row in shown("shown-stages")] == [row["stage"] for row in outcome["stages"]]
    assert shown("shown-comparison")[0]["delta"] == 2.5
    assert outcome["report"] in shown("shown-report")


def artifacts_of(name: str, key: str) -> list[Any]:
    """The artifacts of this key of the newest flow run of this name."""
    with get_client(sync_client=True) as client:
        named = FlowRunFilter.model_validate({"name": {"any_": [name]}})
        (run,) = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)
        wanted = {"key": {"any_": [key]}, "flow_run_id": {"any_": [run.id]}}
        return client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted))


def test_a_failed_run_has_one_table_that_says_what_failed_and_what_to_do(
    finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished_run("name=broken")
    shutil.rmtree(run.artifacts["evaluate"].path)
    shutil.rmtree(run.artifacts["report"].path)
    refused = InputError('paraphrased_queries.csv row 7: "<b>no</b>" caption')
    monkeypatch.setattr("paraclip.tasks.run.execute.run_stage", _all_but("evaluate", refused))
    with caplog.at_level("ERROR"), pytest.raises(InputError):
        pipeline(settings=run.settings)
    (table,) = artifacts_of("pipeline-broken", "broken-stages")
    assert [row["stage"] for row in json.loads(table.data)][-1] == "finetune"
    assert "**Failed:** evaluate: paraphrased_queries.csv row 7" in table.description and r"\<b\>" in table.description
    assert "built_in_base, finetune" in table.description and "Fix what it names. **Retry**" in table.description
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert [record.name for record in tracebacks] == ["prefect.task_runs"]


def _all_but(name: str, error: Exception) -> Any:
    """In place of `run_stage`, the finished stages; the one of this name fails."""

    def run_stage(node: Node, run: Any, *_: object) -> Any:
        if node.name == name:
            raise error
        return run.artifact(node.name)

    return run_stage


def test_a_paused_run_stops_its_stages_and_says_so(
    finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run("name=paused")
    asked: list[str] = []
    paused: list[Any] = []

    def wait(node: Node, run: Any, *_: object) -> None:
        with get_client(sync_client=True) as client:
            state = client.set_flow_run_state(flow_run.id, Suspended(timeout_seconds=300), force=True).state
        # What Prefect's observer does in a deployment's run.
        context = FlowRunContext.get()
        assert context is not None and state is not None
        context.flow_run_suspension_request.mark_requested(state)
        assert run.stop.wait(60), "the stage was not stopped"
        asked.append(node.name)
        paused.append(flow_run.id)
        run.stop.check()

    monkeypatch.setattr("paraclip.tasks.run.execute.run_stage", wait)
    with pytest.raises(Pause):
        pipeline(settings=run.settings)
    assert asked == ["ingest"]
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(paused[0]).state
    assert state is not None and state.name == "Suspended" and state.message == pause.PAUSED
    assert state.state_details.pause_timeout is not None and state.state_details.pause_reschedule


@pytest.mark.parametrize(
    ("error", "tries", "where"),
    [
        (CrashedError("its process was killed by SIGKILL"), 1, "without a deployment"),
        (CrashedError("its process was killed by SIGKILL"), 3, "pipeline"),
        (AwayError("http://127.0.0.1:1 cannot be reached"), 3, "alone"),
        (EngineError("the server refuses the key"), 1, "alone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_stage_is_tried_again_where_that_may_help(
    error: Exception, tries: int, where: str, finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail(node: Node, *_: object, **__: object) -> None:
        asked.append(node.name)
        raise error

    monkeypatch.setattr("paraclip.flows.stages.DELAYS", [0.0])
    monkeypatch.setattr("paraclip.tasks.run.execute.run_stage", fail)
    for place in ("stages", "pipeline") if where != "without a deployment" else ():
        monkeypatch.setattr(f"paraclip.flows.{place}.retries", lambda: 2)
    with pytest.raises(type(error)):
        (STAGE_FLOWS["ingest"] if where == "alone" else pipeline)(settings=finished_run("name=tried").settings)
    assert asked == ["ingest"] * tries


def test_what_a_killed_try_left_running_is_crashed_when_the_run_is_retried(finished_run: Callable[..., Any]) -> None:
    run = finished_run("name=retried")
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(pipeline, parameters={"settings": run.settings.model_dump(mode="json")})
        for key, state in (("1", Running()), ("2", Completed())):
            client.create_task_run(task(run_stages), flow_run.id, dynamic_key=key, name=f"left-{key}", state=state)
        state: Any = run_flow(pipeline, flow_run=flow_run, return_type="state")
        assert state.is_completed()
        theirs = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [flow_run.id]}}))
    ended = {one.name: one.state.name for one in theirs if one.state and one.name.startswith("left")}
    assert ended == {"left-1": "Crashed", "left-2": "Completed"}


def test_a_tracker_that_is_missing_is_reported_before_anything_runs(
    finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paraclip_core.training.trackers.find_spec", lambda name: None)
    # Where nothing is left to train, nothing is missing.
    run = finished_run("name=tracked", "run.trackers=[wandb]")
    outcome: Any = pipeline(settings=run.settings)
    assert {row["state"] for row in outcome["stages"]} == {"cached"}
    shutil.rmtree(run.artifacts["finetune"].path)
    monkeypatch.setattr("paraclip.tasks.run.execute.run_stage", None)
    with pytest.raises(ConfigError, match="names wandb, which is not installed"):
        pipeline(settings=run.settings)


def test_captions_that_come_while_it_runs_are_the_next_runs(
    finished_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"caption": "a dog on a beach"}\n')
    run = finished_run("name=fed", f"data.root={tmp_path}", "data.sources.0.images=null")

    def feed(*_: object) -> None:
        captions.write_text('{"caption": "a dog on a beach"}\n{"caption": "a cat on a mat"}\n')

    monkeypatch.setattr("paraclip.flows.stages.let_own_logs_through", feed)
    outcome: Any = pipeline(settings=run.settings)
    assert {row["state"] for row in outcome["stages"]} == {"cached"} and outcome["verdict"] == "hold"
    assert run.store.channel("fed")["fingerprint"] == run.artifacts["finetune"].fingerprint


def test_a_run_whose_captions_lack_something_ends_before_it_asks(tmp_path: Path, openai_server: OpenAIServer) -> None:
    """All twelve images are for training, and the benchmark wants others."""
    rows = [f"{image}.jpg,a dog with number {image} runs {way}" for image in range(12) for way in ("east", "west")]
    (tmp_path / "captions.csv").write_text("\n".join(["Image,Caption", *rows]) + "\n")
    (tmp_path / "0.jpg").touch()
    tree = {"run": {"root": str(tmp_path / "root")}, "paraphrase": served(openai_server.url)}
    tree["data"] = {"root": str(tmp_path), "sources": [{"path": "captions.csv", "images": "."}]}
    tree["evaluate"] = {"benchmarks": [{"name": "captions", "kind": "paraphrased_retrieval"}]}
    with pytest.raises(BenchmarkError, match=r"no ingested caption of split 'val' has an image; set evaluate\.split"):
        pipeline(settings=parse_settings(tree))
    assert [path.name for path in (tmp_path / "root" / "artifacts").iterdir()] == ["ingest"]
    assert not openai_server.asked


def test_a_failing_stage_is_one_message_without_a_traceback(prefect: str, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    options = [f"data.root={tmp_path}", "data.sources.0.path=bad.parquet", f"run.root={tmp_path}/root"]
    sets = [part for text in options for part in ("--set", text)]
    command = [sys.executable, "-m", "paraclip.flows.cli", "run", *sets]
    environment = {**os.environ, "PREFECT_API_URL": prefect}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    assert "error:" in done.stderr and "bad.parquet" in done.stderr
    assert "Traceback" not in done.stderr and "prefect" not in done.stderr.lower()
    assert done.stdout == ""


RUN = """
import logging, sys
from prefect.logging.configuration import setup_logging
setup_logging()
import paraclip.flows.stages  # every flow's module imports it
sys.stdin.readline()
for _ in range(3):
    logging.getLogger().warning("a line that no one reads")
open(sys.argv[1], "w").write("lived")
"""


def test_a_run_outlives_the_worker_that_reads_its_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path / "end")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdin is not None and run.stderr is not None
        run.stderr.close()
        run.stdin.write(b"\n")
        run.stdin.close()
        assert run.wait(timeout=120) == 0
    assert (tmp_path / "end").read_text() == "lived"
