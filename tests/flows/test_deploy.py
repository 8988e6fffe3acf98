"""What `paraclip deploy` registers, keeps, puts back, refuses and removes, on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect
import pytest
from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.settings import Settings as PrefectSettings
from prefect.states import Completed, Running

from paraclip.flows.cli import run_cli
from paraclip.flows.deploy import Nightly, deploy
from paraclip.flows.deployments import Existing
from paraclip.flows.names import CPU_RUNS, HEARTBEAT, POOLS, TAG
from paraclip.flows.places import PARENT_RUNS, PARENTS, Target
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.settings import load_settings, parse_settings
from tests.kit.prefect_server import _empty, runs_of, states

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def own(name: str, **groups: Any) -> Settings:
    """Settings as a file gives them."""
    data = {"root": "photos", "sources": [{"path": "captions.csv", "images": "photos"}]}
    return parse_settings({"name": name, "data": data, **groups})


@pytest.fixture
def server(prefect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server without any deployment or pool; the address of its API."""
    _empty(prefect)
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    monkeypatch.chdir(tmp_path)
    return prefect


def register(
    settings: Settings,
    cron: str | None = None,
    channel: str | None = None,
    timezone: str | None = None,
    **target: Any,
) -> Any:
    with get_client(sync_client=True) as client:
        return deploy(Existing.read(client), settings, Target(**target), Nightly(channel, cron, timezone))


def read(name: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


def change(name: str, **fields: Any) -> None:
    """As the UI does."""
    with get_client(sync_client=True) as client:
        client.update_deployment(read(name).id, DeploymentUpdate(**fields))


def names() -> set[str]:
    with get_client(sync_client=True) as client:
        return set(Existing.read(client).deployments)


@pytest.mark.usefixtures("server")
def test_configurations_side_by_side_and_what_is_refused_changes_none(capsys: pytest.CaptureFixture[str]) -> None:
    register(load_settings("demo"))
    first = register(own("mine"), cron="0 3 * * *", timezone="Europe/Berlin")
    second = register(own("theirs", paraphrase={"engine": "openai", "model": "x"}), channel="other")
    flows = {"pipeline", "regenerate", "rollback", "ingest", "paraphrase_1", "paraphrase_2", "queries", "features"}
    flows |= {"built_in_base", "finetune", "evaluate", "report"}
    every = {f"{flow}/{name}" for name in ("mine", "theirs", "demo") for flow in flows}
    # The demo has paraphrased queries of its own.
    assert names() == every - {"queries/demo"}
    assert [read(f"regenerate/{name}").parameters["channel"] for name in ("demo", "mine", "theirs")] == [
        "demo-production", "production", "other",
    ]  # fmt: skip
    assert not read("regenerate/demo").schedules and not read("regenerate/theirs").schedules
    (schedule,) = read("regenerate/mine").schedules
    assert schedule.active and (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Berlin")
    assert parse_settings(read("pipeline/mine").parameters["settings"]) == own("mine")
    # A stage that asks a server elsewhere needs no GPU worker.
    pools = {row["deployment"]: row["pool"] for row in (*first.rows, *second.rows)}
    assert (pools["paraphrase_1/mine"], pools["paraphrase_1/theirs"]) == (POOLS[1], POOLS[0])
    assert pools["finetune/theirs"] == POOLS[1] and read("regenerate/mine").global_concurrency_limit.limit == 1
    assert "no worker" in first.waiting[-1]

    refused: tuple[tuple[Settings, dict[str, str], str], ...] = (
        (own("other"), {}, r"regenerate/mine moves the channel 'production' already.*--channel"),
        (own("third"), {"channel": "third"}, "a channel with a run's own name"),
        (own("50%"), {"channel": "new"}, "cannot name deployments"),
        (own("new"), {"channel": "new-production", "cron": "0 3 * *"}, "expected five fields"),
        (own("mine"), {"timezone": "UTC"}, "--timezone is for --cron"),
        (own("mine", paraphrase={"engine": "openai"}), {}, r"engine=openai needs paraphrase\.model"),
    )
    for settings, options, problem in refused:
        with pytest.raises(ConfigError, match=problem):
            register(settings, **options)
    assert run_cli(["deploy", "--cron", "0 4 * * *"]) == 2
    said = "--cron: of which configuration? Deployed are mine, theirs; give its file with -c"
    assert said in capsys.readouterr().err
    assert names() == every - {"queries/demo"}


@pytest.mark.usefixtures("server")
def test_what_a_person_changed_is_put_back_and_reported_and_what_is_operated_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(own("mine"), cron="0 3 * * *", timezone="Europe/Berlin", root="runs").facts
    assert (first["root"], first["folder"]) == (str(tmp_path / "runs"), str(tmp_path))
    before = read("regenerate/mine")
    changed = {"channel": "theirs", "settings": {**before.parameters["settings"], "finetune": {"epochs": 77}}}
    change("regenerate/mine", parameters=changed, job_variables={**before.job_variables, "stream_output": False})
    change("regenerate/mine", tags=[TAG, "ours"])
    change("pipeline/mine", concurrency_limit=2)
    with get_client(sync_client=True) as client:
        client.update_deployment_schedule(before.id, before.schedules[0].id, active=False)
        client.pause_deployment(before.id)
        parents = client.read_work_queue_by_name(PARENTS, POOLS[0])
        client.update_work_queue(parents.id, concurrency_limit=None)
    # From another folder, and without the root, which stays.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = register(own("mine"))
    (note,) = again.notes
    assert again.facts == first
    changes = 'channel "theirs" → "production", finetune.epochs 77 → (default)'
    assert note == f"regenerate/mine follows the configuration: {changes}"
    after = read("regenerate/mine")
    assert after.id == before.id and after.paused and after.parameters == before.parameters
    assert [schedule.active for schedule in after.schedules] == [False] and {*after.tags} == {"ours", TAG}
    assert after.job_variables["stream_output"] is False
    assert read("pipeline/mine").global_concurrency_limit.limit == 2
    with get_client(sync_client=True) as client:
        assert client.read_work_queue(parents.id).concurrency_limit == PARENT_RUNS
    # Paused by a person, it stays so under another clock, too.
    other = register(own("mine", run={"root": "of-the-file"}), cron="30 4 * * *")
    schedules = "schedule 0 3 * * * Europe/Berlin (paused) → 30 4 * * * Europe/Berlin (paused)"
    assert f"regenerate/mine: {schedules}" in other.notes
    assert other.facts["root"] == str(tmp_path / "elsewhere/of-the-file")
    assert [(one.schedule.cron, one.active) for one in read("regenerate/mine").schedules] == [("30 4 * * *", False)]
    assert register(own("mine"), cron="", root="/srv/runs", folder="/srv").facts["folder"] == "/srv"
    assert not read("regenerate/mine").schedules
    (note,) = register(own("mine", finetune={"epochs": 3})).notes
    assert note == "pipeline/mine and 10 more follow the configuration: finetune.epochs (default) → 3.0"


@pytest.mark.usefixtures("server")
def test_what_is_no_longer_needed_is_removed_and_what_is_not_ours_stays() -> None:
    with get_client(sync_client=True) as client:
        for flow, entrypoint, tags in (
            ("regenerate", "company.flows.regenerate", [TAG]),
            ("pipeline", "paraclip.flows.pipeline.pipeline", ["company"]),
        ):
            flow_id = client.create_flow_from_name(flow)
            client.create_deployment(flow_id, "theirs", entrypoint=entrypoint, tags=tags)
        register(own("mine", evaluate={"control": True}))
        assert "control/mine" in names() and not any(name.endswith("/theirs") for name in names())
        assert "removed control/mine, which mine does not need" in register(own("mine")).notes
        assert "control/mine" not in names() and read("regenerate/theirs") and read("pipeline/theirs")
        assert Existing.read(client).of_other_releases() == []
        deployment = read("pipeline/mine")
        client.create_deployment(
            deployment.flow_id, "mine", entrypoint=deployment.entrypoint, tags=[TAG], version="0.9"
        )
        (note,) = Existing.read(client).of_other_releases()
    assert note.startswith("mine was deployed by another release")


@pytest.mark.usefixtures("server")
def test_pools_of_each_type_get_what_their_runs_need(tmp_path: Path) -> None:
    shipped = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    docker, kubernetes = (
        json.loads(shipped.read_text())[f"prefect-{kind}"][kind]["default_base_job_configuration"]
        for kind in ("docker", "kubernetes")
    )
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="boxes", type="docker", base_job_template=docker))
        client.create_work_pool(WorkPoolCreate(name="cluster", type="kubernetes", base_job_template=kubernetes))
    there = r"boxes \(docker\), cluster \(kubernetes\)"
    with pytest.raises(ConfigError, match=rf"no work pool 'nothing'; it has {there}"):
        register(own("mine"), pool="nothing")
    with pytest.raises(ConfigError, match="--root runs is relative"):
        register(own("mine"), pool="boxes", root="runs")
    with pytest.raises(ConfigError, match="--image is for pools whose runs work in containers"):
        register(own("mine"), image="paraclip:cpu")
    for option in ("volume", "secret"):
        for pools in ({}, {"pool": "cluster"}, {"pool": "boxes", "gpu_pool": "cluster"}):
            with pytest.raises(ConfigError, match="are for docker pools only; in others the pool's template"):
                register(own("mine"), **pools, **{option: "data"})
    assert not names()

    deployed = register(own("mine"), pool="boxes", image="paraclip:cpu", volume="data", secret="keys")
    assert (deployed.facts["root"], deployed.facts["folder"]) == ("/data/root", "/data")
    assert not any("is given no" in note for note in deployed.notes)
    (bare,) = [note for note in register(own("bare"), pool="boxes", channel="b").notes if "is given no" in note]
    assert "the pool boxes is given no --image and no --volume" in bare
    register(own("jobs"), pool="cluster", image="paraclip:cpu", channel="jobs-production")
    box, job = read("pipeline/mine").job_variables, read("finetune/jobs").job_variables
    assert box["volumes"] == ["data", f"{tmp_path / 'keys'}:/run/secrets:ro"] and box["image"] == "paraclip:cpu"
    assert job.keys() == {"env", "image"} and job["image"] == "paraclip:cpu"
    assert box["env"]["PARACLIP_ROOT"] == job["env"]["PARACLIP_ROOT"] == "/data/root"
    with get_client(sync_client=True) as client:
        assert client.read_work_pool("cluster").base_job_template == kubernetes
        assert client.read_work_queue_by_name("pipelines", "boxes").concurrency_limit == CPU_RUNS * 3 // 4
    # Later it stays where it is, with what it has, but for what is named again.
    again = register(own("mine"), root="s3://bucket/folder", secret="newer")
    assert read("pipeline/mine").job_variables["volumes"] == ["data", f"{tmp_path / 'newer'}:/run/secrets:ro"]
    assert {row["pool"] for row in again.rows} == {"boxes"} and again.facts["root"] == "s3://bucket/folder"
    assert read("finetune/mine").job_variables["image"] == "paraclip:cpu"
    assert register(own("mine")).facts["root"] == "s3://bucket/folder"


@pytest.mark.usefixtures("server")
def test_pipelines_that_wait_for_their_stages_leave_places_on_the_worker() -> None:
    assert 0 < PARENT_RUNS < CPU_RUNS
    register(own("mine"))
    with get_client(sync_client=True) as client:
        asked = runs_of(POOLS[0], [None] * (PARENT_RUNS + 2), "SCHEDULED", PARENTS)
        stage = runs_of(POOLS[0], [None], "SCHEDULED")

        def offered() -> set[UUID]:
            runs = client.get_scheduled_flow_runs_for_work_pool(POOLS[0])
            return {response.flow_run.id for response in runs} & {*asked, *stage}

        begun = offered() & {*asked}
        assert len(begun) == PARENT_RUNS
        for run in begun:
            client.set_flow_run_state(run, Running(), force=True)
        assert offered() == {*stage}
        for run in begun:
            client.set_flow_run_state(run, Completed(), force=True)
        assert offered() == {*asked, *stage} - begun


def test_a_bare_worker_works_in_the_root_that_was_deployed(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "captions.txt").write_text("a dog on a beach\n")
    data = {"root": str(tmp_path), "sources": [{"path": "captions.txt"}]}
    register(parse_settings({"name": "bare", "data": data}), root=str(tmp_path / "root"))
    deployment = read("ingest/bare")
    environment = deployment.job_variables["env"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == HEARTBEAT and environment["PYTHONSAFEPATH"] == "1"
    assert "paraclip_core" in environment["PREFECT_LOGGING_EXTRA_LOGGERS"]
    with monkeypatch.context() as patch:
        name = "PREFECT_CLIENT_RETRY_EXTRA_CODES"
        patch.setenv(name, environment[name])
        assert PrefectSettings().client.retry_extra_codes == {500}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment.id)
    assert run.tags == [TAG]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PARACLIP_", "PREFECT_"))}
    bare |= {"PREFECT_API_URL": server, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOLS[0], "--run-once"]
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert states([run.id]) == ["Completed"], done.stdout + done.stderr
    assert list((tmp_path / "root" / "artifacts" / "ingest").iterdir())
