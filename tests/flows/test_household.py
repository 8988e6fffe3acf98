"""The household's files: what is deployed where, and what is refused before anything starts."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from flows import household
from flows.cli import run_cli
from flows.household import POOLS, living_api_url, read_household, serve, stop
from flows.processes import Process
from flows.setup import PARENTS
from paraclip_core.errors import ArtifactError, ConfigError, StageError
from paraclip_core.settings import load_settings, parse_settings
from storage.files import write_json
from tasks.registry import STAGES
from tasks.stages.paraphrase import STEPS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())


def test_every_flow_is_deployed_once(declared: dict[str, Any]) -> None:
    names = [deployment["name"] for deployment in declared["deployments"]]
    assert sorted(names) == sorted([*STAGES, *(f"{name}-api" for name in STEPS), "pipeline", "regenerate", "rollback"])
    for deployment in declared["deployments"]:
        module, _, flow = deployment["entrypoint"].rpartition(".")
        assert getattr(importlib.import_module(module), flow).name == deployment["name"].removesuffix("-api")
        assert deployment["work_pool"]["name"] in POOLS
    queued = {one["name"] for one in declared["deployments"] if one["work_pool"].get("work_queue_name") == PARENTS}
    assert queued == {"pipeline", "regenerate"}


def test_the_deployed_settings_are_the_demo(declared: dict[str, Any]) -> None:
    demo = load_settings(REPOSITORY / "configs" / "demo.yaml")
    for deployment in declared["deployments"]:
        if deployment["name"] == "rollback":
            continue  # a channel's history is all that it needs
        assert parse_settings(deployment["parameters"]["settings"]) == demo


def test_no_module_of_prefect_hides_ours(declared: dict[str, Any], tmp_path: Path) -> None:
    """What it runs at a cancel or crash is a script in a folder that has a `storage.py`, too."""
    (tmp_path / "storage.py").touch()
    script = tmp_path / "script.py"
    script.write_text("import storage.roots")
    added = [deployment["work_pool"]["job_variables"]["env"] for deployment in declared["deployments"]]
    assert all(variables == added[0] for variables in added)
    for environment, code in (({}, 1), (added[0], 0)):
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        environment = {**plain, "PYTHONPATH": str(REPOSITORY), **environment}
        assert subprocess.run([sys.executable, script], env=environment, capture_output=True).returncode == code


def test_shared_state_has_one_run_at_a_time(declared: dict[str, Any]) -> None:
    limited = {d["name"] for d in declared["deployments"] if d.get("concurrency_limit")}
    assert limited == {*STEPS, *(f"{name}-api" for name in STEPS), "regenerate"}
    nightly = next(d for d in declared["deployments"] if d["name"] == "regenerate")
    assert nightly["schedules"][0]["cron"] == "0 3 * * *"


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} cannot be used .*--port"):
            serve(tmp_path, port, tmp_path, REPOSITORY / "prefect.yaml")
    assert read_household(tmp_path) is None


def test_a_password_that_only_the_server_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(household, "_need_free_port", lambda port: None)
    monkeypatch.setattr(household, "start", lambda *_: pytest.fail("something was started"))
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:one")
    for told in ("", "admin:other"):
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", told)
        with pytest.raises(ConfigError, match="that PREFECT_API_AUTH_STRING does not hold"):
            serve(tmp_path, 4999, tmp_path, REPOSITORY / "prefect.yaml")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["serve", "--root", str(tmp_path), "--folder", str(tmp_path / "none")]) == 2
    assert "--folder" in capsys.readouterr().err


def test_what_is_gone_is_neither_used_nor_ended(tmp_path: Path) -> None:
    assert living_api_url(tmp_path) is None and stop(tmp_path) == []
    gone = {"name": "server", "pid": 1, "started": "never"}
    write_json(tmp_path / "prefect" / "household.json", {"url": "http://127.0.0.1:1", "processes": [gone]})
    found = read_household(tmp_path)
    assert found is not None and found.processes == (Process("server", 1, "never"),)
    assert living_api_url(tmp_path) is None
    assert stop(tmp_path) == [] and read_household(tmp_path) is None


@pytest.mark.parametrize("text", ["null", "{}", '{"url": "x", "processes": [{"pid": 1}]}'])
def test_a_damaged_file_of_a_household_says_what_to_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "household.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"household\.json is not as `paraclip serve` writes it .*; delete it"):
        stop(tmp_path)


def test_workers_open_the_root_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own data lies in the folder here, the workers' artifacts in the object store."""
    started: list[dict[str, str]] = []

    def start(_name: str, _command: object, environment: dict[str, str], *_: object) -> Process:
        started.append(environment)
        raise KeyboardInterrupt

    monkeypatch.setattr(household, "start", start)
    monkeypatch.setattr(household, "_need_free_port", lambda port: None)
    for location, expected in (("s3://bucket/folder", "s3://bucket/folder"), (None, str(tmp_path))):
        with pytest.raises(KeyboardInterrupt):
            serve(tmp_path, 4999, tmp_path, REPOSITORY / "prefect.yaml", location)
        assert started[-1]["PARACLIP_ROOT"] == expected
        assert started[-1]["PREFECT_HOME"].startswith(str(tmp_path))


def test_a_full_disk_does_not_keep_a_household_from_being_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise ArtifactError("no space left")

    write_json(tmp_path / "prefect" / "household.json", {"url": "http://127.0.0.1:1", "processes": []})
    monkeypatch.setattr(household, "carriers", lambda *_: {2**22 + 1: "never started"})
    monkeypatch.setattr(household, "remember", full)
    assert stop(tmp_path) == []
    assert read_household(tmp_path) is None and "stay marked as running: no space left" in caplog.text


def test_a_restarted_server_knows_who_holds_a_concurrency_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []

    def refuse(*arguments: Any) -> None:
        started.append(arguments[5])
        raise StageError("it does not start")

    monkeypatch.setattr(household, "_need_free_port", lambda port: None)
    monkeypatch.setattr(household, "_start", refuse)
    with pytest.raises(StageError):
        serve(tmp_path, 4200, tmp_path, REPOSITORY / "prefect.yaml")
    compose = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())
    for environment in (started[0], compose["services"]["server"]["environment"]):
        leases = importlib.import_module(environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"])
        folder = tmp_path / Path(environment["PREFECT_HOME"]).name
        lease = asyncio.run(leases.ConcurrencyLeaseStorage(folder).create_lease([uuid4()], timedelta(minutes=5)))
        assert asyncio.run(leases.ConcurrencyLeaseStorage(folder).read_lease(lease.id)) == lease
