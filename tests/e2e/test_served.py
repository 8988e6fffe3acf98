"""One local stack asked from many sides: a killed stage is retried in the UI, a cancelled one ends, pages of others run
nothing, and Prefect's own commands work.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyarrow.parquet import read_metadata

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.run.child import log_path
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.settings import parse_settings
from tests.kit.browser import needs_browser
from tests.kit.openai_server import Fault, OpenAIServer, well
from tests.kit.processes import command_of, parent_of
from tests.kit.receiver import web_server
from tests.kit.served import Api, make_data, of_stack, serving, tiny_settings
from tests.kit.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

BEFORE = ("ingest", "paraphrase_1", "paraphrase_2", "features", "built_in_base")
REBOUND = "rebound.example"
"""A name that leads to 127.0.0.1 by now, as an attacker's may after its page was loaded."""
ATTACK = """async ([api, deployment, body, authorization]) => {
  const ask = (path, options = {}) => {
    const headers = {...(authorization && {Authorization: authorization}), ...options.headers};
    return fetch(`${api}/${path}`, {...options, headers}).then(
      async answer => [answer.status, await answer.text()], () => ["blocked", ""]);
  };
  const listen = path => new Promise(resolve => {
    const socket = new WebSocket(`${api.replace("http", "ws")}/${path}`, ["prefect"]);
    socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: ""}));
    socket.onmessage = () => resolve("open");
    socket.onclose = () => resolve("closed");
  });
  const [token, text] = await ask("csrf-token?client=attack");
  const csrf = token === 200 && {"Prefect-Csrf-Client": "attack", "Prefect-Csrf-Token": JSON.parse(text).token};
  const run = `deployments/${deployment}/create_flow_run`;
  const post = {method: "POST", body, headers: {"Content-Type": "application/json", ...csrf}};
  return {
    read: (await ask("admin/version"))[0],
    token,
    run: (await ask(run, post))[0],
    blind: (await ask(run, {method: "POST", body, mode: "no-cors"}))[0],
    events: await listen("events/in"),
    logs: await listen("logs/out"),
  };
}"""


class Served(NamedTuple):
    """A stack, the root of its runs, and their data."""

    api: Api
    root: Path
    data: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With what comes before fine-tuning made while the server starts."""
    folder = tmp_path_factory.mktemp("served")
    root, data = folder / "root", folder / "data"
    make_data(data)
    few_captions = folder / "few.txt"
    few_captions.write_text("a dog on a beach\n")
    few = {"name": "few", "data": {"sources": [{"path": str(few_captions)}]}}
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        api = pool.submit(stack.enter_context, serving(root, folder, few))
        settings = parse_settings(killed_run(root, data, "inline"))
        # In this process, which saves starting one for each stage.
        stages = {name: replace(stage, isolated=False) for name, stage in stages_of(settings).items()}
        for name in BEFORE:
            run_stage(name, Run(settings, stages=stages))
        yield Served(api.result(), root, data)


def killed_run(root: Path, data: Path, placement: str) -> dict[str, Any]:
    """A run whose fine-tuning takes long enough to be killed half-way."""
    settings = tiny_settings(f"e2e-{placement}", root, data)
    settings["run"]["placement"] = placement
    settings["finetune"] |= {"batch_size": 8, "checkpoint_steps": 5, "seed": len(placement)}
    del settings["evaluate"]["benchmarks"][1:]
    return settings


def stage_processes(root: Path) -> dict[str, int]:
    """The children in which workers below this root carry out stages, by stage."""
    pids = of_stack(root, "paraclip.tasks.run.child")
    requests = {pid: json.loads(Path(command_of(pid).split()[-1]).read_text())["request"] for pid in pids}
    return {request["draft"]["stage"]: pid for pid, request in requests.items()}


@needs_browser
@pytest.mark.parametrize("placement", ["inline", pytest.param("deployments", marks=pytest.mark.nightly)])
def test_a_killed_stage_is_retried_in_the_ui(served: Served, placement: str) -> None:
    api, root, data = served
    plain, store = killed_run(root, data, placement), ArtifactStore(root)
    changed_at = {
        path: path.stat().st_mtime_ns for stage in BEFORE for path in store.root.glob(f"artifacts/{stage}/*/*.json")
    }
    earlier = {run["id"] for run in api.runs()}

    def runs() -> dict[str, dict[str, Any]]:
        ours = [run for run in api.runs() if run["id"] not in earlier]
        by_flow = {run["flow"]: run for run in ours}
        assert len(by_flow) == len(ours), "a stage has two runs"
        return by_flow

    pipeline = api.run_deployment("pipeline", plain)
    fingerprint = Run(parse_settings(plain), store).nodes["finetune"].fingerprint
    folder = store.root / "work" / "candidate"
    # Not any file: one that is being written does not count, and the killed run could not go on from it.
    eventually(lambda: any(folder.glob("*/scratch/checkpoints/step-*.safetensors")), "fine-tuning left no checkpoint")
    child = stage_processes(root)["finetune"]
    # The flow run that waits for it.
    os.kill(parent_of(child), signal.SIGKILL)

    eventually(lambda: command_of(child) == "", "the child outlived its killed parent", 60)
    ends = {"inline": {"pipeline": "Crashed"}, "deployments": {"pipeline": "Failed", "finetune": "Crashed"}}[placement]
    eventually(lambda: {flow: run["state"]["name"] for flow, run in runs().items()} == ends, "it was not seen")
    killed = runs()

    # Prefect looks for hooks in a process of its own, which must find the flow's modules.
    def worker_logs() -> str:
        return (data.parent / "serve.log").read_text()

    # Prefect reports it twice, and the second time undoes a Retry in between (docs/failures.md).
    eventually(lambda: worker_logs().count("Check whether the flow run exceeded") == 2, "no second report", 60)
    assert "ModuleNotFoundError" not in worker_logs()

    api.press_retry(pipeline)
    eventually(lambda: api.state(pipeline) == "Completed", "the retried pipeline did not complete", 300)

    after = runs()
    assert {flow: after[flow]["id"] for flow in killed} == {flow: run["id"] for flow, run in killed.items()}
    assert {after[flow]["run_count"] for flow in killed} == {2}
    assert set(after) == {"pipeline", *(("finetune", "evaluate", "report") if placement == "deployments" else ())}
    assert {path: path.stat().st_mtime_ns for path in changed_at} == changed_at
    assert [len(store.list(stage)) for stage in BEFORE] == [1] * len(BEFORE), "finished stages were made again"
    log = log_path(store, "finetune", fingerprint).read_text()
    assert log.count(" starts in process ") == 2 and "resuming after step" in log
    assert (root / "results" / plain["name"] / "report.html").is_file()
    keys = {artifact["key"] for artifact in api.call("artifacts/latest/filter", {})}
    assert {f"{plain['name']}-{key}" for key in ("stages", "comparison", "report", "finetune-progress")} <= keys


@needs_browser
def test_a_page_of_another_origin_runs_no_command(served: Served, tmp_path: Path) -> None:
    api, target, before = served.api, tmp_path / "target", len(served.api.runs())
    deployment = api.deployment("ingest")
    body = json.dumps({"job_variables": {"command": f"touch {target}"}})
    password = api.headers["Authorization"]
    rebound = api.url.replace("127.0.0.1", REBOUND)
    mapped = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
    with api.browser(mapped, logged_in=False) as page, web_server() as (elsewhere, _):

        def attack(url: str, authorization: str = "") -> dict[str, Any]:
            page.goto(url)
            server = rebound if REBOUND in url else api.url
            return page.evaluate(ATTACK, [f"{server}/api", deployment, body, authorization])

        closed = {"events": "closed", "logs": "closed"}
        blocked = dict.fromkeys(("read", "token", "run"), "blocked")
        # What a blind request is answered, no page is told.
        assert attack(elsewhere) == {**blocked, "blind": 0, **closed}
        assert attack(elsewhere, password) == {**blocked, "blind": 0, **closed}
        # Here is no other origin: the password alone counts.
        assert attack(f"{rebound}/api/health") == {"read": 401, "token": 401, "run": 403, "blind": 403, **closed}
        assert len(api.runs()) == before and not target.exists()
        # Whoever has it may run commands: the attack would have done so.
        allowed = {"read": 200, "token": 200, "run": 201, "blind": 403}
        assert attack(f"{rebound}/api/health", password) == {**allowed, **closed}
        eventually(target.exists, "the worker does not work")


@pytest.mark.parametrize("login", ["", "Basic"])
def test_a_blind_request_is_refused(served: Served, login: str) -> None:
    """A form's, which a browser sends for any page without asking the server before."""
    headers = {"Content-Type": "text/plain", "Origin": "http://elsewhere.example"}
    if login:
        headers["Authorization"] = served.api.headers["Authorization"]
    url = f"{served.api.url}/api/deployments/{served.api.deployment('ingest')}/create_flow_run"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=60)
    assert refusal.value.code == 403 and "CSRF" in refusal.value.read().decode()


def test_prefect_s_own_commands_work_with_what_serve_says(served: Served) -> None:
    assert "Completed" in served.api.prefect("deployment", "run", "ingest/few", "--watch")


def test_of_twelve_submissions_at_once_none_is_lost(served: Served) -> None:
    """SQLite takes one writer at a time, and by default refuses most of the others at once."""
    later = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}}
    path = f"deployments/{served.api.deployment('ingest')}/create_flow_run"
    with ThreadPoolExecutor(12) as threads:
        runs = list(threads.map(lambda _: served.api.call(path, later, patience=())["id"], range(12)))
    assert len(set(runs)) == 12


CHUNK = 4
"""Requests, all of which are asked at the same time."""


def side_by_side(root: Path, data: Path, url: str) -> dict[str, Any]:
    """A run that trains its base model while it asks a server."""
    settings = tiny_settings("cancelled", root, data)
    server = {"base_url": url, "concurrency": CHUNK, "retries": 0}
    settings["paraphrase"] = {"engine": "openai", "model": "smol", "prompts": "paper", "chunk": CHUNK, "openai": server}
    settings["paraphrase"] |= {"filters": {"preset": "off"}, "sampling": {"n": 1}, "attempts": 1}
    settings["built_in_base"]["epochs"] = 1000
    settings["finetune"] = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    return settings


@pytest.mark.nightly
def test_a_cancel_stops_stages_side_by_side_and_the_next_run_goes_on(served: Served) -> None:
    (stack, root, data), going = served, threading.Event()

    def rows() -> int:
        return sum(read_metadata(part).num_rows for part in (root / "cache" / "segments").rglob("*.parquet"))

    before = rows()
    with OpenAIServer() as engine:

        def say_nothing(handler: Any) -> None:
            going.wait(600)
            handler.close_connection = True

        def answer(asked: dict[str, Any]) -> dict[str, Any] | Fault:
            return well(asked) if going.is_set() or engine.asked.index(asked) < CHUNK else say_nothing

        engine.answer = answer
        plain = side_by_side(root, data, engine.url)
        run = stack.run_deployment("pipeline", plain)
        fingerprint = Run(parse_settings(plain)).node("built_in_base").fingerprint
        work = ArtifactStore(root).work_path("built_in_base", fingerprint)
        folder = work / "scratch" / "checkpoints"
        eventually((work / "out" / "training_log.jsonl").exists, "no training")
        children = eventually(lambda: len(both := stage_processes(root)) == 2 and both, "not side by side")
        eventually(lambda: rows() == before + CHUNK, "no answers")
        eventually(lambda: engine.under_way, "no requests")
        # Short enough for a test, training waits here for its end.
        os.kill(children["built_in_base"], signal.SIGSTOP)
        checkpoints = set(folder.glob("step-*.safetensors"))
        stack.prefect("flow-run", "cancel", run)
        eventually(lambda: asked_to_end(children["built_in_base"]), "its end was not asked for")
        os.kill(children["built_in_base"], signal.SIGCONT)
        eventually(lambda: stack.state(run) == "Cancelled", "it is not cancelled")
        assert not any(map(command_of, children.values()))
        assert set(folder.glob("step-*.safetensors")) - checkpoints, "the last step was not saved"
        ended = {"built_in_base": "Cancelled", "paraphrase_1": "Cancelled"}
        eventually(lambda: ended.items() <= task_states(stack, run).items(), "the run's page says something else")

        going.set()
        later = stack.run_deployment("pipeline", plain)
        eventually(lambda: stack.state(later) in ("Completed", "Failed", "Crashed"), "it did not end")
        assert stack.state(later) == "Completed"
        log = log_path(ArtifactStore(root), "built_in_base", fingerprint).read_text()
        assert log.count(" starts in process ") == 2 and "resuming after step" in log
        assert set(engine.answered.values()) == {1}, "an answer was paid for twice"


def task_states(api: Api, run: str) -> dict[str, str]:
    tasks = api.call("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {task["name"]: task["state"]["name"] for task in tasks}


def asked_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is stopped."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)
