"""Stages as Prefect's tasks: what runs side by side, what a failure ends, what the run page shows."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prefect import get_client

from paraclip.flows.pipeline import pipeline
from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.run import Node, Run
from paraclip_core.errors import CrashedError, InputError
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect")]

ASKING = ("paraphrase_1", "paraphrase_2", "queries")
UNFINISHED = (*ASKING, "features", "built_in_base", "finetune", "evaluate", "report")
SERVER = "paraphrase.engine=openai", "paraphrase.model=m", "paraphrase.openai.base_url=http://127.0.0.1:1"
PATIENCE = 60


class Machine:
    """In place of `run_stage`, commits what a finished run has, and notes which stages are at work together."""

    def __init__(self, run: Any) -> None:
        self.run, self.lock = run, threading.Lock()
        self.working: set[str] = set()
        self.together: set[frozenset[str]] = set()
        self.order: list[str] = []
        self.before: dict[str, Callable[[Run], object]] = {}
        """What a stage does first."""

    def __call__(self, node: Node, run: Run, *_: object) -> Artifact:
        artifact = run.store.peek(node.name, node.fingerprint)
        if artifact is not None:
            return artifact
        with self.lock:
            self.working.add(node.name)
            self.order.append(node.name)
            self.together.add(frozenset(self.working))
        try:
            self.before.get(node.name, lambda _: None)(run)
            return self._commit(node)
        finally:
            with self.lock:
                self.working.remove(node.name)

    def meet(self, *names: str) -> None:
        """Let these stages end only once all are at work."""

        def wait(run: Run) -> None:
            eventually(lambda: run.stop.check() or {*names} <= {*self.order}, f"{names} never meet", PATIENCE)

        self.before |= dict.fromkeys(names, wait)

    def _commit(self, node: Node) -> Artifact:
        store, earlier = self.run.store, self.run.artifacts[node.name]
        with store.writing(node.name, node.fingerprint) as work:
            shutil.copytree(earlier.path.with_name("earlier"), work.out, dirs_exist_ok=True)
            (work.out / "manifest.json").unlink()
            return store.commit(node.draft, dict(earlier.manifest.metrics), 1.0)


@pytest.fixture
def machine(finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A run that asks a server and else computes on the same cores, its captions ingested and no more."""
    run = finished_run("name=dag", *SERVER, "run.device=cpu")
    for name in UNFINISHED:
        path = run.artifacts[name].path
        path.rename(path.with_name("earlier"))
    machine = Machine(run)
    monkeypatch.setattr("paraclip.tasks.run.execute.run_stage", machine)
    return machine


def shown(state: Any, stages: int) -> dict[str, dict[str, Any]]:
    """What the run page shows of each stage: name and message of its state, and what it came after."""

    def nodes() -> list[Any] | None:
        place = {"id": state.state_details.flow_run_id}
        graph = client.request("GET", "/flow_runs/{id}/graph-v2", path_params=place).json()
        # Task runs come to the server as events, some later than the end of their flow.
        ended = [node for _, node in graph["nodes"] if node["end_time"]]
        return ended if len(ended) >= stages else None

    with get_client(sync_client=True) as client:
        all_nodes, runs = eventually(nodes, "a stage is not shown", PATIENCE), {}
        labels = {node["id"]: node["label"] for node in all_nodes}
        for node in all_nodes:
            ended: Any = client.read_task_run(node["id"]).state
            after = {labels[parent["id"]] for parent in node["parents"]}
            runs[node["label"]] = {"state": (ended.name, ended.message), "after": after}
    return runs


def test_what_needs_no_answers_runs_while_a_server_is_asked(machine: Machine) -> None:
    machine.meet("paraphrase_1", "features")
    machine.meet("paraphrase_2", "built_in_base")
    state = pipeline(settings=machine.run.settings, return_state=True)
    outcome: Any = state.result()
    assert [row["stage"] for row in outcome["stages"]] == list(machine.run.artifacts)
    assert [row["state"] for row in outcome["stages"]] == ["cached"] + ["made"] * 8
    # Those on the same cores take turns.
    assert all(len(working - {*ASKING}) <= 1 for working in machine.together)
    runs = shown(state, len(machine.run.artifacts))
    assert runs["ingest"]["state"] == ("Cached", f"{machine.run.artifacts['ingest'].fingerprint}, rows 1")
    assert runs["paraphrase_1"]["state"][0] == "Completed" and "rows 300" in runs["paraphrase_1"]["state"][1]
    assert runs["features"]["after"] == {"ingest"} and runs["paraphrase_2"]["after"] == {"paraphrase_1"}
    assert runs["queries"]["after"] == {"ingest", "paraphrase_2"}
    assert runs["finetune"]["after"] == {"ingest", "paraphrase_2", "features", "built_in_base"}


@pytest.mark.parametrize(("at_work", "features_is"), [(True, "Cancelled"), (False, "Failed")])
def test_a_failure_ends_what_is_at_work_or_waits_for_its_next_try(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_work: bool, features_is: str
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of a deployment, whose stages are tried again")
    monkeypatch.setattr("paraclip.flows.stages.DELAYS", [1000.0])

    def refuse(_: Run) -> None:
        eventually(lambda: "features" in machine.order and (at_work or "the next one starts in 1000 s" in caplog.text))
        raise InputError("captions.csv row 7 has no caption")

    def fail(run: Run) -> None:
        if not at_work:
            raise CrashedError("its process was killed by SIGKILL")
        assert run.stop.wait(PATIENCE)
        run.stop.check()

    machine.before = {"paraphrase_1": refuse, "features": fail}
    began = time.monotonic()
    state = pipeline(settings=machine.run.settings, return_state=True)
    assert time.monotonic() - began < PATIENCE
    assert state.is_failed() and "paraphrase_1: captions.csv row 7" in (state.message or "")
    assert sorted(machine.order) == ["features", "paraphrase_1"]
    runs = shown(state, 3)
    assert (runs["paraphrase_1"]["state"][0], runs["features"]["state"][0]) == ("Failed", features_is)
