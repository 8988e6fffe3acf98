"""Events of runs, posted to a real webhook by a real server with the automations of docs/alerts.yaml."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect import flow, get_client, tags
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore, Posture
from prefect.exceptions import ObjectAlreadyExists, Pause
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_METRICS_ENABLED,
    PREFECT_CLIENT_METRICS_PORT,
    temporary_settings,
)
from prefect.utilities.services import stop_client_metrics_server
from prefect.workers.process import ProcessWorker

from paraclip.flows.automations import SILENT, create_automations
from paraclip.flows.names import HEARTBEAT, POOLS, TAG
from paraclip.flows.pipeline import pipeline
from paraclip.flows.prefect_ui import EVENTS, PrefectUi
from paraclip.flows.regenerate import regenerate, rollback
from paraclip.flows.stages import STAGE_FLOWS
from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.engines import EngineContext
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.settings import parse_settings
from tests.kit.prefect_server import prefect_server, runs_of, whole_server
from tests.kit.processes import free_port
from tests.kit.receiver import ALERTS, forward_alerts, web_server
from tests.kit.waiting import eventually

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
Posted = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Only a whole one, which takes longer to start, sees that runs are late and workers gone.
    whole = any(item.get_closest_marker("nightly") for item in request.session.items)
    with whole_server(tmp_path_factory.mktemp("prefect")) if whole else prefect_server() as url:
        yield url


@pytest.fixture
def posted(server: str, tmp_path: Path) -> Iterator[Posted]:
    """The alerts that are posted to a webhook."""
    with web_server() as (url, posted):
        forward_alerts(url, tmp_path, {"PREFECT_API_URL": server})
        yield posted
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if automation.name.startswith("alerts: "):
                client.delete_automation(automation.id)


def wait_for(posted: Posted, event: str) -> dict[str, Any]:
    return eventually(
        lambda: next((m for m in list(posted) if m["event"] in (event, f"paraclip.{event}")), None), event
    )


def test_the_file_forwards_events_that_there_are() -> None:
    first, *others = yaml.safe_load(ALERTS.read_text())
    assert set(first["trigger"]["expect"]) <= {f"paraclip.{event}" for event in EVENTS}
    assert len(others) == 4 and all(one["actions"] == first["actions"] for one in others)


def test_a_night_is_reported(finished_run: Callable[..., Any], posted: Posted) -> None:
    first = finished_run("name=nightly", verdict="promote")
    state = regenerate(settings=first.settings, return_state=True)
    assert "production: moved" in (state.message or "")
    assert tags_of(state) >= {"moved"}
    moved = wait_for(posted, "channel.moved")
    assert moved["run"] == "nightly" and moved["facts"]["channel"] == "production" and "moved" in moved["text"]
    assert wait_for(posted, "run.promote")["text"].startswith("promote: ")
    second = finished_run("name=nightly", "finetune.seed=3", verdict="hold")
    state = regenerate(settings=second.settings, return_state=True)
    assert "production: kept" in (state.message or "") and "held" in tags_of(state)
    state = pipeline(settings=second.settings, return_state=True)
    assert (state.message or "").startswith("hold: because this test says so") and "hold" in tags_of(state)
    assert "held" in wait_for(posted, "channel.held")["text"] and wait_for(posted, "run.hold")

    absent = {"on_error": "skip", "sources": [{"path": 'the "first".csv'}]}
    failing = parse_settings({"name": "nightly", "run": {"root": str(first.store.root)}, "data": absent})
    with pytest.raises(ConfigError), tags(TAG):
        pipeline(settings=failing)
    failed = wait_for(posted, "prefect.flow-run.Failed")
    assert failed["run"] == "pipeline-nightly"
    assert "ConfigError: this run needs files and folders" in failed["text"] and 'the "first".csv' in failed["text"]
    # Before anything else, which would fail.
    with pytest.raises(ConfigError, match="'production' serves a model of the run 'nightly' since"):
        regenerate.fn(settings=failing.model_copy(update={"name": "other"}))


def deployed(name: str, pool: str, cron: str = "") -> Any:
    """The deployment of a configuration's nightly run, in a pool that is made if need be."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        deployment = client.create_deployment(
            client.create_flow(regenerate),
            name,
            work_pool_name=pool,
            entrypoint="paraclip.flows.regenerate.regenerate",
            schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron=cron))] if cron else [],
            tags=[TAG],
        )
        return client.read_deployment(deployment)


@pytest.mark.nightly  # it waits for the server's clock, which a busy machine delays
def test_what_a_run_cannot_tell_itself_is_reported(
    posted: Posted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARACLIP_ROOT", str(tmp_path))
    deployed("mine", POOLS[0], "0 3 * * *")
    deployed("other", POOLS[1])
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            trigger: Any = one.trigger
            if one.name.startswith("alerts: ") and trigger.posture == Posture.Proactive:
                trigger.within = timedelta(seconds=10)
                client.update_automation(one.id, AutomationCore(**one.model_dump(exclude={"id", "owner_resource"})))
    # The one without the tag is nobody's here.
    (foreign,), (crashed,) = (runs_of(POOLS[0], [None], "CRASHED", tags=tags) for tags in ([], [TAG]))
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat(POOLS[1], "of the night", heartbeat_interval_seconds=1)
        names = [client.read_flow_run(run).name for run in (foreign, crashed)]
        deployment: Any = client.read_flow_run(crashed).deployment_id
        waiting = client.create_flow_run_from_deployment(deployment, tags=[TAG]).name
    with tags(TAG):
        states = [pipeline(config=str(tmp_path / "gone.yaml"), return_state=True)]
        states += [rollback(channel="nobodys", return_state=True)]
        states += [rollback(channel="nobodys", return_state=True)]
    assert all(state.is_failed() for state in states)

    def alerts_of(text: str, run: str) -> list[dict[str, Any]]:
        return [m for m in list(posted) if text in m["text"] and run == m["run"]]

    failed = ("", names[1]), ("gone.yaml", "pipeline-gone"), ("nobodys", "rollback-nobodys")
    others = ("a run has waited for a worker", waiting), ("a pool has had no worker", POOLS[1]), ("regenerate/mine", "")
    eventually(lambda: all(alerts_of(*one) for one in (*failed, *others)), "not all have come")
    assert len(alerts_of("", "rollback-nobodys")) == 1 and not alerts_of("", names[0])


@pytest.mark.parametrize("silent", [0, pytest.param(int(HEARTBEAT) + 10, marks=pytest.mark.nightly)])
def test_a_person_has_the_last_word(finished_run: Callable[..., Any], posted: Posted, server: str, silent: int) -> None:
    """A run is carried out here, or two by a worker and then left alone for longer than a silent run may be."""
    messages = ("production: moved to", "kept: the challenger is the model") if silent else ("production: moved to",)
    deployed("other", POOLS[0])
    if silent:
        create_automations(SILENT._replace(seconds=silent))
    night = finished_run("name=nightly", "run.promote=ask", verdict="promote")
    with pytest.raises(ConfigError, match="needs a run of the deployment"):
        regenerate.fn(settings=night.settings)
    with get_client(sync_client=True) as client, worker(server) if silent else nullcontext():
        deployment = client.create_deployment(
            client.create_flow(regenerate),
            "asked",
            parameters={"settings": night.settings.model_dump(mode="json")},
            work_pool_name=POOLS[0],
            entrypoint="paraclip.flows.regenerate.regenerate",
            pull_steps=[],
            concurrency_limit=1,
            tags=[TAG],
            job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT, "PYTHONSAFEPATH": "1"}},
        )

        def until(run: UUID, ends: Callable[[Any], bool]) -> None:
            if not silent:
                with suppress(Pause):
                    run_flow(regenerate, flow_run=client.read_flow_run(run), return_type="state")
            eventually(lambda: ends(client.read_flow_run(run).state), "it does not come to that", 240)

        # One at a time; one that waits for a person is in no other's way.
        runs = []
        for _ in messages:
            runs.append(client.create_flow_run_from_deployment(deployment).id)
            until(runs[-1], lambda state: state.name == "Suspended")
        assert night.store.channel("production") is None
        assert "waits for Resume in the UI, and is then moved to" in wait_for(posted, "channel.asks")["text"]
        # Nothing is behind it, and it does not count as crashed.
        time.sleep(silent and silent + 10)
        for run, message in zip(runs, messages, strict=True):
            assert client.read_flow_run(run).state.name == "Suspended"  # pyright: ignore[reportOptionalMemberAccess]
            client.resume_flow_run(run)
            until(run, lambda state: state.is_final())
            state = client.read_flow_run(run).state
            assert state is not None and state.is_completed() and message in (state.message or "")
    assert night.store.channel("production")["fingerprint"] == night.artifacts["finetune"].fingerprint
    events = ["asks", "asks", "moved", "held"] if silent else ["asks", "moved"]
    wait_for(posted, f"channel.{events[-1]}")
    channel = "paraclip.channel."
    assert [m["event"].removeprefix(channel) for m in posted if m["event"].startswith(channel)] == events


@contextmanager
def worker(server: str) -> Iterator[None]:
    """A worker of the CPU pool, as a process of its own."""
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--type", "process", "--pool", "paraclip-cpu"]
    variables = {"PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def tags_of(state: Any) -> set[str]:
    with get_client(sync_client=True) as client:
        return set(client.read_flow_run(state.state_details.flow_run_id).tags)


def test_a_rollback_by_hand_is_reported(
    finished_run: Callable[..., Any],
    posted: Posted,
    server: str,
    cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    runs = [finished_run(f"finetune.seed={seed}", verdict="promote") for seed in range(3)]
    oldest, older, newest = (run.artifacts["finetune"].fingerprint for run in runs)
    for seed in range(3):
        cli(["promote", "-c", str(runs[0].config), "--set", f"finetune.seed={seed}", "--force"])
    back = ["channel", "rollback", "production", "--root", str(runs[0].store.root)]
    cli(back)
    event = wait_for(posted, "channel.rolled_back")
    assert event["run"] == "production" and event["text"] == f"production: rolled back from {newest} to {older}"
    assert (event["facts"]["before"], event["facts"]["after"]) == (newest, older)
    # A server that is away stops nobody who wants another model at once.
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        cli(back)
    assert "channel.rolled_back is not sent" in caplog.text
    assert runs[0].store.channel("production")["fingerprint"] == oldest


def test_a_cap_that_is_near_is_reported_once_a_run(posted: Posted) -> None:
    at = EngineContext(options_at="evaluate.queries")

    @flow
    def spend() -> None:
        for cap in (0.0, 2.0, 2.0):
            own = {"max_spend": cap, "price_per_million_prompt_tokens": 1, "price_per_million_completion_tokens": 1}
            given = {"engine": "openai", "model": "m", "openai": own}
            progress = PrefectUi("costly").progress("queries", Paraphraser(ParaphraseOptions(**given), at).engine())
            for spent in (0.5, 1.59, 1.6, 1.9):
                progress(1, 2, spend=spent)

    spend()
    spend()
    near = eventually(lambda: len(both := [m for m in posted if m.get("run") == "costly"]) == 2 and both)
    assert [m["event"] for m in near] == ["paraclip.cap.near"] * 2 and near[0]["facts"]["spend"] == 1.6
    assert near[0]["text"] == "1.6 of evaluate.queries.openai.max_spend=2 is spent; at the cap the run stops"


def test_the_figures_of_a_run_are_scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    (tmp_path / "captions.txt").write_text("".join(f"a dog beside tree {number}\n" for number in range(200)))
    data = {"root": str(tmp_path), "sources": [{"path": "captions.txt"}]}
    night = {"name": "night", "run": {"root": str(tmp_path)}, "data": data}
    port = free_port()
    with temporary_settings({PREFECT_CLIENT_METRICS_ENABLED: True, PREFECT_CLIENT_METRICS_PORT: port}):
        try:
            STAGE_FLOWS["ingest"](settings=parse_settings(night))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                lines = answer.read().decode().splitlines()
        finally:
            stop_client_metrics_server()
    assert 'paraclip_stage{fact="done",run="night",stage="ingest"} 1.0' in lines
    assert any(line.startswith("prefect_") for line in lines)
