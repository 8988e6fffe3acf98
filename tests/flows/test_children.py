"""Stages that others run: which child run a retried parent finds again, and who waits for another's result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paraclip.flows.stages import carry_stage
from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.run.child import log_path
from paraclip.tasks.run.run import Node, Run, Stop
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, InputError, StageError
from paraclip_core.settings import load_settings
from tests.kit.waiting import eventually

pytestmark = pytest.mark.slow


def test_a_retry_finds_its_child_again_unless_an_input_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.exceptions import ObjectNotFound

    from paraclip.flows import children

    keys: list[str] = []

    def unknown(_: str, *, idempotency_key: str, **__: Any) -> None:
        keys.append(idempotency_key)
        raise ObjectNotFound(Exception("404"))

    monkeypatch.setattr(children, "run_deployment", unknown)
    captions = tmp_path / "captions.csv"
    settings = load_settings(
        None, [f"run.root={tmp_path / 'root'}", f"data.root={tmp_path}", "data.sources.0.path=captions.csv"]
    )
    for more in ("", "", "a cat on a mat\n"):
        captions.write_text(f"caption\na dog on a beach\n{more}")
        with pytest.raises(StageError, match=r"no deployment ingest/paraclip.*run\.placement=deployments"):
            children.run_child(Run(settings, ArtifactStore(settings.run.root)).nodes["ingest"], Run(settings))
    assert keys[0] == keys[1] != keys[2]


@pytest.fixture(scope="module")
def deployed(prefect: str) -> None:
    """A Prefect server with a deployment of `scenes`, of a run that has no name of its own."""
    from paraclip.flows.stages import STAGE_FLOWS

    STAGE_FLOWS["scenes"].to_deployment(Settings().name).apply()  # pyright: ignore[reportAttributeAccessIssue] - async code only


def scenes(root: Path, images: int) -> tuple[Settings, ArtifactStore, Node, Callable[[int], str]]:
    """A run, the store, the node of `scenes`, and what makes its artifact."""
    options = [f"run.root={root}", f"data.scenes.images={images}", "data.sources.0.path=captions.jsonl"]
    settings, store = load_settings(None, options), ArtifactStore(root)
    node = Run(settings, store).nodes["scenes"]

    def make(_: int) -> str:
        with store.writing("scenes", node.fingerprint):
            store.commit(node.draft, {}, 0.0)
        return "COMPLETED"

    return settings, store, node, make


def test_a_run_that_waited_does_not_say_that_it_made_the_artifact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, store, node, _ = scenes(tmp_path, 20)
    caplog.set_level(logging.INFO)
    path = log_path(store, "scenes", node.fingerprint)
    with ThreadPoolExecutor(1) as pool:
        with store.writing("scenes", node.fingerprint):
            row = pool.submit(carry_stage, "scenes", Run(settings, store))
            eventually(lambda: path.exists() and "waiting for" in path.read_text())
            store.commit(node.draft, {}, 12.0)
        assert (row.result(30)["state"], row.result()["made_in"]) == ("cached", 12.0)
    assert "scenes: took another run's result after" in caplog.text and "made in" not in caplog.text
    assert carry_stage("scenes", Run(settings, store))["state"] == "cached" and "scenes: cached in 0.0 s" in caplog.text


@contextmanager
def worker(carry: Callable[[int], str]) -> Iterator[list[int]]:
    """Ends every scheduled run in the state that `carry` names; gives the run count of each that it took."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State, StateType

    stop, taken = threading.Event(), []
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}})

    def work() -> None:
        with get_client(sync_client=True) as client:
            while not stop.wait(0.1):
                for run in client.read_flow_runs(flow_run_filter=wanted):
                    client.set_flow_run_state(run.id, State(type=StateType.RUNNING), force=True)
                    taken.append(client.read_flow_run(run.id).run_count)
                    client.set_flow_run_state(run.id, State(type=StateType(carry(len(taken)))), force=True)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("deployed")
def test_a_completed_child_whose_artifact_is_gone_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import get_client

    from paraclip.flows import children

    monkeypatch.setattr(children, "POLL_SECONDS", 0.1)
    settings, store, node, make = scenes(tmp_path, 20)

    with worker(make) as taken:
        assert children.run_child(node, Run(settings))["state"] == "made"
        assert children.run_child(node, Run(settings))["state"] == "cached" and taken == [1]
        artifact = store.find("scenes", node.fingerprint)
        assert artifact is not None
        store.remove(artifact)
        assert children.run_child(node, Run(settings))["state"] == "made"
    assert taken == [1, 2] and "is Completed, but its artifact is missing: it runs again" in caplog.text
    store.remove(artifact)

    with worker(lambda _: "COMPLETED") as taken, pytest.raises(ArtifactError, match=r"completed, but .*Retry this run"):
        children.run_child(node, Run(settings))
    assert taken == [3], "it runs again once and no more"

    def begin_and_crash(_: int) -> str:
        child = children._start(Run(settings), node)
        with get_client(sync_client=True) as client:
            client.update_flow_run(child.id, name="scenes-mine")
        return "CRASHED"

    with worker(begin_and_crash) as taken, pytest.raises(StageError, match="run scenes-mine of scenes ended as Crash"):
        children.run_child(node, Run(settings))
    assert taken == [4]


def test_a_parent_outlives_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    from paraclip.flows import children

    def refused(code: int) -> Exception:
        answer = httpx.Response(code, request=httpx.Request("POST", "http://server"))
        return PrefectHTTPStatusError("refused", request=answer.request, response=answer)

    answers: list[Any] = [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), refused(500), "answer"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(children, "POLL_SECONDS", 0.0)
    assert children._patiently(ask, Stop()) == "answer"
    assert caplog.text.count("does not answer, trying again") == 1
    answers += [refused(404)]
    with pytest.raises(PrefectHTTPStatusError):
        children._patiently(ask, Stop())
    monkeypatch.setattr(children, "AWAY_SECONDS", -1.0)
    answers += [httpx.ConnectError("refused")]
    with pytest.raises(httpx.ConnectError):
        children._patiently(ask, Stop())


@pytest.mark.usefixtures("deployed")
def test_a_child_that_is_being_cancelled_with_its_earlier_parent_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import get_client
    from prefect.client.schemas.objects import State, StateType

    from paraclip.flows import children

    monkeypatch.setattr(children, "POLL_SECONDS", 0.1)
    settings, _, node, make = scenes(tmp_path, 21)
    child = children._start(Run(settings), node)

    def become(kind: str) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(child.id, State(type=StateType(kind)), force=True)

    # Prefect cancels the children of a cancelled run some seconds after it; Retry may come before.
    become("RUNNING")
    become("CANCELLING")
    ends = threading.Timer(1.0, become, ["CANCELLED"])
    ends.start()
    with worker(make) as taken:
        assert children.run_child(node, Run(settings))["state"] == "made"
    ends.join()
    assert taken == [2]


@pytest.mark.usefixtures("deployed")
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent_is: str, ended_by: BaseException, child_becomes: str
) -> None:
    from prefect import get_client
    from prefect.client.schemas.objects import State, StateType

    from paraclip.flows import children

    settings, store, node, _ = scenes(tmp_path, 22)
    run = Run(settings, store)

    def ended(_: float) -> bool:
        run.stop.reason = ended_by
        run.stop.set()
        return True

    with get_client(sync_client=True) as client:
        parent = children._start(run, Node(node.stage, replace(node.draft, fingerprint=f"{parent_is} {ended_by!r}")))
        client.set_flow_run_state(parent.id, State(type=StateType.RUNNING), force=True)
        client.set_flow_run_state(parent.id, State(type=StateType(parent_is)), force=True)
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(parent.id))
        monkeypatch.setattr(run.stop, "wait", ended)
        with pytest.raises(StageError, match="was stopped"):
            children.run_child(node, run)
        # A run that no worker has taken needs no one to end it.
        child = client.read_flow_run(children._start(run, node).id)
    assert child.id != parent.id and child.state and child.state.type == StateType(child_becomes)
