"""What a page in the operator's browser may do to the server of `paraclip serve`, which can run commands: nothing."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from served import Api, serving
from waiting import eventually  # pyright: ignore[reportMissingImports]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

REPOSITORY = Path(__file__).parents[2]
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
    """A stack, the id of its only deployment, and where its runs work."""

    api: Api
    deployment: str
    root: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    scenes = next(one for one in declared["deployments"] if one["name"] == "scenes")
    data = {"scenes": {"images": 24}, "sources": [{"path": "captions.jsonl", "images": "images.tar"}]}
    scenes["parameters"] = {"settings": {"name": "few", "data": data, "run": {"root": str(folder / "root")}}}
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(declared | {"deployments": [scenes]}))
    with serving(folder / "root", folder, path) as api:
        yield Served(api, api.call("deployments/name/scenes/scenes")["id"], folder / "root")


@contextmanager
def attacker() -> Iterator[str]:
    """Address of a page of another origin."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_page_of_another_origin_runs_no_command(served: Served, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    target = tmp_path / "target"
    body = json.dumps({"job_variables": {"command": f"touch {target}"}})
    password = f"Basic {base64.b64encode(served.api.login.encode()).decode()}"
    rebound = served.api.url.replace("127.0.0.1", REBOUND)
    with playwright.sync_playwright() as play, attacker() as elsewhere:
        flags = ["--no-sandbox", f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page()

        def attack(url: str, authorization: str = "") -> dict[str, Any]:
            page.goto(url)
            server = rebound if REBOUND in url else served.api.url
            return page.evaluate(ATTACK, [f"{server}/api", served.deployment, body, authorization])

        closed = {"events": "closed", "logs": "closed"}
        blocked = dict.fromkeys(("read", "token", "run"), "blocked")
        # What a blind request is answered, no page is told.
        assert attack(elsewhere) == {**blocked, "blind": 0, **closed}
        assert attack(elsewhere, password) == {**blocked, "blind": 0, **closed}
        # Here is no other origin: the password alone counts.
        assert attack(f"{rebound}/api/health") == {"read": 401, "token": 401, "run": 403, "blind": 403, **closed}
        assert not served.api.runs() and not target.exists()
        # Whoever has it may run commands: the attack would have done so.
        assert attack(f"{rebound}/api/health", password) == {
            "read": 200,
            "token": 200,
            "run": 201,
            "blind": 403,
            **closed,
        }
        eventually(target.exists, "the worker does not work")
        browser.close()


@pytest.mark.parametrize("login", ["", "Basic"])
def test_a_blind_request_is_refused(served: Served, login: str) -> None:
    """A form's, which a browser sends for any page without asking the server before."""
    headers = {"Content-Type": "text/plain", "Origin": "http://elsewhere.example"}
    if login:
        headers["Authorization"] = served.api.headers["Authorization"]
    url = f"{served.api.url}/api/deployments/{served.deployment}/create_flow_run"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=60)
    assert refusal.value.code == 403 and "CSRF" in refusal.value.read().decode()


def test_prefect_s_own_commands_work_with_what_serve_says(served: Served) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "prefect", "deployment", "run", "scenes/scenes", "--watch"]
    done = subprocess.run(
        command, env={**os.environ, **served.api.variables}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr


def test_of_twelve_submissions_at_once_none_is_lost(served: Served) -> None:
    """SQLite takes one writer at a time, and by default refuses most of the others at once."""
    later = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}}
    path = f"deployments/{served.deployment}/create_flow_run"
    with ThreadPoolExecutor(12) as threads:
        runs = list(threads.map(lambda _: served.api.call(path, later, patience=())["id"], range(12)))
    assert len(set(runs)) == 12
