"""Stages as futures: what runs side by side, who waits for whose slot, what a failure ends, what the run page shows."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.run import Node, Run
from paraclip_core.errors import CrashedError, InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect")]

UNFINISHED = ("paraphrase_1", "paraphrase_2", "features", "built_in_base", "finetune", "evaluate", "report")
SERVER = "paraphrase.engine=openai", "paraphrase.model=m", "paraphrase.openai.base_url=http://127.0.0.1:1"
PATIENCE = 60


class Machine:
    """Carries stages out by an event each, and notes which are at work together."""

    def __init__(self, run: Any) -> None:
        self.run, self.lock = run, threading.Lock()
        self.working: set[str] = set()
        self.together: set[frozenset[str]] = set()
        self.order: list[str] = []
        self.meet: dict[str, str] = {}
        """A stage that ends only once the other one is at work."""
        self.errors: dict[str, Exception] = {}
        self.needed: list[set[str]] = []
        """What the store said each time is being read."""

    def __call__(self, node: Node, run: Run, *_: object) -> Artifact:
        artifact = run.store.peek(node.name, node.fingerprint)
        if artifact is not None:
            return artifact
        with self.lock:
            self.working.add(node.name)
            self.order.append(node.name)
            self.together.add(frozenset(self.working))
            self.needed.append({stage for holder in run.store.holders() for stage in holder.reads})
        try:
            other, end = self.meet.get(node.name), time.monotonic() + PATIENCE
            while other and other not in self.order:
                run.stop.check()
                assert time.monotonic() < end, f"{node.name} never meets {other}"
                time.sleep(0.01)
            if node.name in self.errors:
                raise self.errors[node.name]
            return self._commit(node)
        finally:
            with self.lock:
                self.working.remove(node.name)

    def _commit(self, node: Node) -> Artifact:
        store = self.run.store
        with store.writing(node.name, node.fingerprint) as work:
            earlier = self.run.artifacts[node.name].path.with_name("earlier")
            shutil.copytree(earlier, work.out, dirs_exist_ok=True)
            (work.out / "manifest.json").unlink()
            return store.commit(node.draft, dict(self.run.artifacts[node.name].manifest.metrics), 1.0)


@pytest.fixture
def machine(finished_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """A run whose captions are ingested and no more, and what carries its stages out."""

    def make(*options: str) -> Machine:
        run = finished_run("name=dag", *options)
        for name in UNFINISHED:
            path = run.artifacts[name].path
            path.rename(path.with_name("earlier"))
        machine = Machine(run)
        monkeypatch.setattr("paraclip.flows.stages.run_stage", machine)
        return machine

    return make


def test_what_needs_no_answers_runs_while_a_server_is_asked(machine: Callable[..., Machine]) -> None:
    from paraclip.flows.pipeline import pipeline

    here = machine(*SERVER)
    pairs = ("paraphrase_1", "features"), ("paraphrase_2", "built_in_base")
    here.meet = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    state = pipeline(settings=here.run.settings, return_state=True)
    outcome: Any = state.result()
    assert [row["stage"] for row in outcome["stages"]] == list(here.run.artifacts)
    assert [row["state"] for row in outcome["stages"]] == ["cached"] * 2 + ["made"] * 7
    assert {"paraphrase_1", "features"} in here.together and {"paraphrase_2", "built_in_base"} in here.together
    runs = shown(state, len(here.run.artifacts))
    assert runs["ingest"]["state"] == ("Cached", f"{here.run.artifacts['ingest'].fingerprint}, rows 1")
    assert runs["paraphrase_1"]["state"][0] == "Completed" and "rows 300" in runs["paraphrase_1"]["state"][1]
    assert runs["features"]["after"] == {"ingest", "scenes"} and runs["paraphrase_2"]["after"] == {"paraphrase_1"}
    assert runs["finetune"]["after"] == {"ingest", "paraphrase_2", "features", "built_in_base"}


def shown(state: Any, stages: int) -> dict[str, dict[str, Any]]:
    """What the run page shows of each stage: name and message of its state, and what it came after."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        flow_run = state.state_details.flow_run_id
        end = time.monotonic() + PATIENCE
        while True:
            nodes = client.request("GET", "/flow_runs/{id}/graph-v2", path_params={"id": flow_run}).json()["nodes"]
            if len(nodes) >= stages or time.monotonic() > end:
                break
            # Task runs come to the server as events, some later than the end of their flow.
            time.sleep(0.2)
        labels = {node["id"]: node["label"] for _, node in nodes}
        runs = {}
        for _, node in nodes:
            ended = client.read_task_run(node["id"]).state
            assert ended is not None
            after = {labels[parent["id"]] for parent in node["parents"]}
            runs[node["label"]] = {"state": (ended.name, ended.message), "after": after}
    return runs


def test_stages_that_compute_on_the_same_cores_take_turns_in_the_order_of_the_stages(
    machine: Callable[..., Machine],
) -> None:
    from paraclip.flows.pipeline import pipeline

    here = machine("run.device=cpu")
    pipeline(settings=here.run.settings)
    assert {len(working) for working in here.together} == {1}
    assert here.order == list(UNFINISHED)


def test_the_first_failure_is_the_runs_and_ends_the_others(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paraclip.flows.pipeline import pipeline

    monkeypatch.setattr("paraclip.flows.pipeline.retries", lambda: 1)
    here = machine(*SERVER)
    here.meet = {"paraphrase_1": "features", "features": "a stage that there is not"}
    here.errors = {"paraphrase_1": InputError("captions.csv row 7 has no caption")}
    state = pipeline(settings=here.run.settings, return_state=True)
    assert state.is_failed() and "captions.csv row 7" in (state.message or "")
    assert sorted(here.order) == ["features", "paraphrase_1"]
    assert all({"paraphrase_1", "evaluate"} <= stages for stages in here.needed)
    assert here.run.store.holders() == []
    # One that waits for its next try is ended, too.
    monkeypatch.setattr("paraclip.flows.stages.DELAYS", [1000.0])
    here.meet, here.errors = {}, {**here.errors, "features": CrashedError("its process was killed by SIGKILL")}
    waiting = threading.Event()
    from paraclip.flows.stages import _tried_again as tried_again

    def noticed(*asked: Any) -> bool:
        waiting.set()
        return tried_again(*asked)

    def late(*asked: Any) -> Artifact:
        if asked[0].name == "paraphrase_1":
            assert waiting.wait(PATIENCE)
        return here(*asked)

    monkeypatch.setattr("paraclip.flows.stages._tried_again", noticed)
    monkeypatch.setattr("paraclip.flows.stages.run_stage", late)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"captions\.csv row 7"):
        pipeline(settings=here.run.settings)
    assert time.monotonic() - began < PATIENCE
