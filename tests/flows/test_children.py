"""Stages that others run: which child run a retried parent finds again, and who waits for another's result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError

from paraclip.flows import children
from paraclip.flows.children import run_child
from paraclip.flows.stages import STAGE_FLOWS, carry_stage
from paraclip.tasks.run.child import log_path
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, InputError, StageError
from paraclip_core.settings import load_settings
from tests.kit.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed(prefect: str) -> Iterator[UUID]:
    """A deployment of `ingest`, of a run that has no name of its own, on a Prefect server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "POLL_SECONDS", 0.1)
        deployment: Any = STAGE_FLOWS["ingest"].to_deployment(Settings().name)
        yield deployment.apply()


def run_over(folder: Path, *captions: str) -> Run:
    """A run of these captions, which are written for it."""
    (folder / "captions.csv").write_text("\n".join(["caption", *captions]))
    return Run(load_settings(None, [f"run.root={folder}", f"data.root={folder}", "data.sources.0.path=captions.csv"]))


def ingested(run: Run) -> None:
    """Commit its artifact of `ingest`."""
    node = run.node("ingest")
    with run.store.writing("ingest", node.fingerprint):
        run.store.commit(node.draft, {}, 12.0)


def child_of(run: Run) -> dict[str, Any]:
    return run_child(run.node("ingest"), run)


def left_by_a_parent(run: Run, ended_by: BaseException) -> UUID:
    """The child of a parent that ends before any worker has taken it."""
    run.stop.reason = ended_by
    run.stop.set()
    with pytest.raises(StageError, match="was stopped"):
        child_of(run)
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0].id


def become(run: UUID, *states: str) -> None:
    with get_client(sync_client=True) as client:
        for state in states:
            client.set_flow_run_state(run, State(type=StateType(state)), force=True)


@contextmanager
def worker(carry: Callable[[FlowRun], object], ends: str = "COMPLETED") -> Iterator[list[int]]:
    """Takes every scheduled run, calls `carry` and ends it; gives the run count of each that it took."""
    stop, taken = threading.Event(), list[int]()
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}})

    def work() -> None:
        with get_client(sync_client=True) as client:
            while not stop.wait(0.1):
                for run in client.read_flow_runs(flow_run_filter=wanted):
                    become(run.id, "RUNNING")
                    taken.append(client.read_flow_run(run.id).run_count)
                    carry(run)
                    become(run.id, ends)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield taken
        finally:
            stop.set()
            working.result()


def test_a_run_that_waited_does_not_say_that_it_made_the_artifact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_over(tmp_path, "a dog on a beach")
    node, store = run.node("ingest"), run.store
    caplog.set_level(logging.INFO)
    path = log_path(store, "ingest", node.fingerprint)
    with ThreadPoolExecutor(1) as pool:
        with store.writing("ingest", node.fingerprint):
            row = pool.submit(carry_stage, "ingest", run)
            eventually(lambda: path.exists() and "waiting for" in path.read_text())
            store.commit(node.draft, {}, 12.0)
        assert (row.result(30)["state"], row.result()["made_in"]) == ("cached", 12.0)
    assert "ingest: took another run's result after" in caplog.text and "made in" not in caplog.text
    assert carry_stage("ingest", run)["state"] == "cached" and "ingest: cached in 0.0 s" in caplog.text


@pytest.mark.usefixtures("deployed")
def test_a_retry_finds_its_child_which_runs_again_if_its_artifact_is_gone_unless_an_input_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_over(tmp_path, "a dog on a beach")
    with worker(lambda _: ingested(run)) as taken:
        assert child_of(run)["state"] == "made"
        assert child_of(run)["state"] == "cached" and taken == [1]
        run.store.remove(run.artifacts()["ingest"])
        assert child_of(run)["state"] == "made"
    assert taken == [1, 2] and "is Completed, but its artifact is missing: it runs again" in caplog.text
    run.store.remove(run.artifacts()["ingest"])

    with worker(lambda _: None) as taken, pytest.raises(ArtifactError, match=r"completed, but .*Retry this run"):
        child_of(run)
    assert taken == [3], "it runs again once and no more"

    def begin(child: FlowRun) -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(child.id, name="ingest-mine")

    crash = pytest.raises(StageError, match="run ingest-mine of ingest ended as Crash")
    with worker(begin, "CRASHED") as taken, crash:
        child_of(run)
    assert taken == [4]

    changed = run_over(tmp_path, "a dog on a beach", "a cat on a mat")
    with worker(lambda _: ingested(changed)) as taken:
        child_of(changed)
    assert taken == [1], "it is another child"


@pytest.mark.usefixtures("prefect")
def test_a_parent_outlives_a_server_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, start = run_over(tmp_path, "a dog on a beach"), children.run_deployment
    errors: list[Exception] = []

    def answer(*args: Any, **given: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return start(*args, **given)

    def refused(code: int) -> Exception:
        response = httpx.Response(code, request=httpx.Request("POST", "http://server"))
        return PrefectHTTPStatusError("refused", request=response.request, response=response)

    monkeypatch.setattr(children, "run_deployment", answer)
    monkeypatch.setattr(children, "POLL_SECONDS", 0.0)
    errors += [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), refused(500)]
    with pytest.raises(StageError, match=r"no deployment features/paraclip.*run\.placement=deployments"):
        run_child(run.node("features"), run)
    assert not errors and caplog.text.count("does not answer, trying again") == 1
    errors += [refused(404)]
    with pytest.raises(PrefectHTTPStatusError):
        child_of(run)
    monkeypatch.setattr(children, "AWAY_SECONDS", -1.0)
    errors += [httpx.ConnectError("refused")]
    with pytest.raises(httpx.ConnectError):
        child_of(run)


@pytest.mark.usefixtures("deployed")
def test_a_child_that_is_being_cancelled_with_its_earlier_parent_runs_again(tmp_path: Path) -> None:
    child = left_by_a_parent(run_over(tmp_path, "a red car"), SystemExit())
    # Prefect cancels the children of a cancelled run some seconds after it; Retry may come before.
    become(child, "RUNNING", "CANCELLING")
    ends = threading.Timer(1.0, become, [child, "CANCELLED"])
    ends.start()
    run = run_over(tmp_path, "a red car")
    with worker(lambda _: ingested(run)) as taken:
        assert child_of(run)["state"] == "made"
    ends.join()
    assert taken == [2]


@pytest.mark.parametrize(
    ("parent_is", "ended_by", "child_becomes"),
    [
        ("CANCELLING", SystemExit(), "CANCELLED"),
        ("RUNNING", SystemExit(), "SCHEDULED"),
        ("RUNNING", KeyboardInterrupt(), "CANCELLED"),
        ("RUNNING", InputError("another stage's"), "CANCELLED"),
    ],
)
def test_a_child_is_cancelled_with_its_parent_and_survives_its_crash(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deployed: UUID,
    parent_is: str,
    ended_by: BaseException,
    child_becomes: str,
) -> None:
    with get_client(sync_client=True) as client:
        parent = client.create_flow_run_from_deployment(deployed).id
        become(parent, "RUNNING", parent_is)
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(parent))
        # A run that no worker has taken needs no one to end it.
        child = client.read_flow_run(left_by_a_parent(run_over(tmp_path, "a blue boat"), ended_by))
    assert child.id != parent and child.state and child.state.type == StateType(child_becomes)
