"""The flows in a Prefect test server, over finished stages and over one that fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.errors import (
    ArtifactError,
    AwayError,
    ConfigError,
    CrashedError,
    EngineError,
    FullDiskError,
    InputError,
)
from tasks.context import Run
from tasks.stage import Node

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    with prefect_server():
        yield


def shown(key: str) -> Any:
    """The newest artifact of this key in the UI."""
    from prefect.artifacts import Artifact

    found: Any = Artifact.get(key)
    return None if found is None else json.loads(found.data) if found.type == "table" else found.data


def test_a_pipeline_of_finished_stages_does_nothing_and_shows_it(finished_run: Callable[..., Any]) -> None:
    from flows.pipeline import pipeline

    run = finished_run("name=shown")
    outcome: Any = pipeline(settings=run.settings)
    assert {row["state"] for row in outcome["stages"]} == {"cached"}
    assert [row["stage"] for row in shown("shown-stages")] == [row["stage"] for row in outcome["stages"]]
    assert shown("shown-comparison")[0]["delta"] == 2.5
    assert outcome["report"] in shown("shown-report")


def test_regenerate_moves_the_channel_only_on_promote(finished_run: Callable[..., Any]) -> None:
    from flows.regenerate import regenerate

    nightly: Any = regenerate
    first = finished_run("name=nightly", verdict="promote")
    decision = nightly(settings=first.settings)["decision"]
    assert decision["moved"] and first.store.channel("production")["fingerprint"] == decision["after"]
    second = finished_run("name=nightly", "finetune.seed=3", verdict="hold")
    decision = nightly(settings=second.settings)["decision"]
    assert not decision["moved"] and "held" in decision["reason"]
    assert first.store.channel("production")["fingerprint"] == decision["before"]
    assert decision["reason"] in shown("nightly-promotion")


def test_a_failing_stage_fails_the_run_with_its_own_error(
    finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pipeline import pipeline

    run = finished_run("name=failing")
    needed: list[set[str]] = []

    def refuse(node: Node, *_: object, **__: object) -> None:
        needed.append({stage for holder in run.store.holders() for stage in holder.reads})
        raise InputError(f"{node.name}: captions.csv row 7 has no caption")

    monkeypatch.setattr("flows.work.run_node", refuse)
    state = pipeline(settings=run.settings, return_state=True)
    assert state.is_failed() and "captions.csv row 7" in (state.message or "")
    with pytest.raises(InputError):
        pipeline(settings=run.settings)
    assert all({"paraphrase_1", "evaluate"} <= stages for stages in needed) and run.store.holders() == []


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (CrashedError("its process was killed by SIGKILL"), 3),
        (AwayError("http://127.0.0.1:1 cannot be reached"), 3),
        (FullDiskError("no space left"), 2),
        (ConfigError("--lr"), 1),
        (EngineError("the server refuses the key"), 1),
        (ArtifactError("an edited file"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_stage_is_tried_again_where_that_may_help(
    error: Exception, tries: int, alone: bool, finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import work
    from flows.pipeline import pipeline
    from flows.stages import STAGE_FLOWS

    asked: list[str] = []

    def fail(node: Node, *_: object, **__: object) -> None:
        asked.append(node.name)
        raise error

    monkeypatch.setattr(work, "DELAYS", [0.0])
    monkeypatch.setattr(work, "run_node", fail)
    run = finished_run("name=tried", "run.retries=2")
    with pytest.raises(type(error)):
        (STAGE_FLOWS["scenes"] if alone else pipeline)(settings=run.settings)
    assert asked == ["scenes"] * tries
    asked.clear()
    with pytest.raises(type(error)):
        pipeline(settings=finished_run("name=tried").settings)
    assert asked == ["scenes"], "without a deployment a run ends with the first error"


def test_a_tracker_that_is_missing_is_told_before_anything_runs(
    finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pipeline import pipeline

    monkeypatch.setattr("paraclip_core.training.trackers.find_spec", lambda name: None)
    # Where nothing is left to train, nothing is missing.
    run = finished_run("name=tracked", "run.trackers=[wandb, file]")
    outcome: Any = pipeline(settings=run.settings)
    assert {row["state"] for row in outcome["stages"]} == {"cached"}
    shutil.rmtree(run.artifacts["finetune"].path)
    monkeypatch.setattr("flows.work.run_node", None)
    with pytest.raises(ConfigError, match="needs the package wandb, which is not installed"):
        pipeline(settings=run.settings)


def test_captions_that_come_while_it_runs_are_the_next_runs(
    finished_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import pipeline, work

    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"caption": "a dog on a beach"}\n')
    run = finished_run("name=fed", "data.scenes=null", f"data.root={tmp_path}", "data.sources.0.images=null")

    def feed(*_: object) -> None:
        captions.write_text('{"caption": "a dog on a beach"}\n{"caption": "a cat on a mat"}\n')

    monkeypatch.setattr(work, "let_own_logs_through", feed)
    outcome: Any = pipeline.pipeline(settings=run.settings)
    assert {row["state"] for row in outcome["stages"]} == {"cached"} and outcome["verdict"] == "hold"
    assert run.store.channel("fed")["fingerprint"] == run.artifacts["finetune"].fingerprint


def test_a_finished_stage_is_found_on_a_read_only_disk(
    finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.work import carry_stage

    run = finished_run("name=kept")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert carry_stage("paraphrase_1", Run(run.settings))["state"] == "cached"


def test_the_ui_gets_a_typed_form_with_descriptions_and_bounds() -> None:
    from flows.pipeline import pipeline

    groups = pipeline.parameters.model_dump()["properties"]["settings"]["properties"]
    epochs = groups["finetune"]["properties"]["epochs"]
    assert epochs["maximum"] == 1000 and epochs["description"]
    engine = groups["paraphrase"]["properties"]["engine"]
    assert "openai" in engine["anyOf"][0]["enum"] and engine["anyOf"][1]["pattern"] == ":"
