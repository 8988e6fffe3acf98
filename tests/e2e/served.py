"""`paraclip serve` and `paraclip stop` around a test, the server's API, and the processes that there are."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paraclip.flows.local_stack import password_file

BUSY = 503


class Api:
    """Prefect's REST API, as far as these tests need it."""

    def __init__(self, url: str, login: str = "") -> None:
        self.url = url
        self.context: ssl.SSLContext | None = None
        self.headers = {"Content-Type": "application/json"}
        if login:
            self.log_in(login)

    @property
    def variables(self) -> dict[str, str]:
        """With which Prefect's own commands find the server."""
        return {"PREFECT_API_URL": f"{self.url}/api", "PREFECT_API_AUTH_STRING": self.login}

    def log_in(self, login: str) -> None:
        """From now on as this user, whose password follows a colon."""
        self.login = login
        self.headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"

    def call(self, path: str, body: Any = None, patience: Sequence[int] = (1, 2, 4, 8)) -> Any:
        request = urllib.request.Request(f"{self.url}/api/{path}", headers=self.headers)
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            # A client of its own for each: tests call from several threads, and a client has one token.
            client = uuid.uuid4().hex
            request.add_header("Prefect-Csrf-Client", client)
            request.add_header("Prefect-Csrf-Token", self.call(f"csrf-token?client={client}", None, patience)["token"])
        for wait in (*patience, 0):
            try:
                with urllib.request.urlopen(request, data, timeout=60, context=self.context) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # The database was locked; Prefect's own clients ask again, too.
                if error.code != BUSY or not wait:
                    raise
            time.sleep(wait)

    def run_deployment(self, name: str, settings: dict[str, Any], *overrides: str) -> str:
        deployment = self.call(f"deployments/name/{name}/{name}")
        parameters = {"settings": settings, "overrides": overrides}
        return self.call(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> str:
        return self.call(f"flow_runs/{run}")["state"]["name"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs that were not only scheduled, in the order of their starts, with the name of their flow."""
        wanted = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}, "sort": "START_TIME_ASC"}
        flows = {flow["id"]: flow["name"] for flow in self.call("flows/filter", {})}
        return [{**run, "flow": flows[run["flow_id"]]} for run in self.call("flow_runs/filter", wanted)]


def log_in(page: Any, api: Api) -> None:
    """Tell the UI in a browser's page the password."""
    page.goto(f"{api.url}/v2/dashboard")
    page.locator("input[type=password]").fill(api.login)
    page.keyboard.press("Enter")
    page.locator("input[type=password]").wait_for(state="detached")


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def paraclip(*arguments: object, code: int = 0, variables: Mapping[str, str] | None = None) -> str:
    """Run a command without Prefect's and this project's variables but these; gives what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PARACLIP_"))}
    environment |= variables or {}
    command = [sys.executable, "-m", "paraclip.flows.cli", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=300
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@contextmanager
def serving(
    root: Path, folder: Path, prefect_file: Path | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Api]:
    """A local stack below `root`; at the end it is stopped, and nothing of it may be left."""
    port = free_port()
    deployments = () if prefect_file is None else ("--prefect-file", prefect_file)
    try:
        paraclip("serve", "--root", root, "--port", port, "--folder", folder, *deployments, variables=variables)
        password = (variables or {}).get("PREFECT_SERVER_API_AUTH_STRING") or password_file(root).read_text().strip()
        yield Api(f"http://127.0.0.1:{port}", password)
    finally:
        paraclip("stop", "--root", root, variables=variables)
        left = [pid for pid in processes() if str(root) in environment_of(pid).get("PARACLIP_ROOT", "")]
        assert not left, "`paraclip stop` left processes behind"


def processes() -> list[int]:
    """The pids of all processes."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def command_of(pid: int) -> str:
    """A process's command line, empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
