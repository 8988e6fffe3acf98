"""Prefect on this machine: the server of one `paraclip run`, and the stack of `paraclip serve` and `paraclip stop`.

The stack is a server, report pages, two pools with workers, and deployments. No file says what runs: each process that
`serve` starts, and each that those start, has the root in its environment, and the server's address and password.

Prefect's own temporary server shares its starter's process group, so Ctrl-C ends it first and the run then waits for
it for minutes; and if its starter is killed, it stays for ever. A run's own server here has a session of its own and
ends with its starter. Its database lies in a temporary folder, so that runs side by side do not share it.
"""

from __future__ import annotations

import atexit
import base64
import hmac
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from paraclip.storage.files import storage_errors, write_atomic
from paraclip.storage.locks import lock
from paraclip_core.errors import ConfigError, StageError
from paraclip_core.lifetime import TempDir
from paraclip_core.paths import PACKAGES

log = logging.getLogger(__name__)

OWN_LOGGERS = ("paraclip", "paraclip_core")
POOLS = ("paraclip-cpu", "paraclip-gpu")
SERVER, PAGES = "server", "pages"
ADDRESS_VARIABLE = "PARACLIP_PAGES"
"""Where the folder `results` is served; runs link to it."""
TAG = "paraclip"
"""Tag of every deployment and so of its runs; automations touch no others."""
RUNS, OURS = {"prefect.resource.id": "prefect.flow-run.*"}, {"prefect.resource.id": f"prefect.tag.{TAG}"}
"""What automations match: flow runs, and what is related to this tag."""
HEARTBEAT = "30"
"""Seconds between the heartbeats of a flow run."""
CPU_RUNS = 8
"""How many flow runs the CPU worker carries out at once; the GPU worker one, for two would share its memory."""
PASSWORD_VARIABLE = "PREFECT_API_AUTH_STRING"
"""What Prefect's own clients send to a server that has a password."""
SERVER_PASSWORD_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 180.0, 30.0
LOG_LINES = 15
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
MARK = "PARACLIP_STACK"
"""Environment variable with the root, of all that `serve` has started."""
PROC = Path("/proc")
PART = re.compile(
    r" -m (?:paraclip\.flows\.(server)|paraclip\.flows\.local_stack (pages)|prefect worker start --pool (\S+)) "
)
URL = re.compile(r" PREFECT_API_URL=(\S+)/api ")
PASSWORD = re.compile(rf" {PASSWORD_VARIABLE}=(\S+) ")

PAGES_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
UNWATCHED = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
}
QUIET = {**UNWATCHED, "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL"}
# A server of one run has no use for a UI and for blocks; making those known takes a second.
OWN = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
}


class Process(NamedTuple):
    """A living process of a local stack."""

    name: str
    """`server`, `pages`, the pool of a worker, or nothing for what a worker has started."""
    pid: int
    url: str
    """Where the stack's UI is."""
    password: str = ""
    """What the server's clients log in with, `USER:PASSWORD`."""


def processes_of(root: Path) -> list[Process]:
    """What runs of the stack under this root, whoever its parents are by now."""
    mark = f" {MARK}={root.resolve()} "
    processes = []
    for pid, text in _all_processes():
        if mark in text and (url := URL.search(text)):
            part, password = PART.search(text), PASSWORD.search(text)
            processes.append(
                Process(part[part.lastindex or 0] if part else "", pid, url[1], password[1] if password else "")
            )
    return processes


def _all_processes() -> Iterator[tuple[int, str]]:
    """Every process of this user: its command line and then its environment, a blank around each part."""
    if not PROC.is_dir():
        listed = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            pid, _, text = line.strip().partition(" ")
            yield int(pid), f"{text} "
        return
    for folder in PROC.glob("[0-9]*"):
        # Other users' processes, and those that end just now, cannot be read; one that has ended has no environment.
        with suppress(OSError):
            text = b" ".join((folder / name).read_bytes() for name in ("cmdline", "environ"))
            yield int(folder.name), text.replace(b"\0", b" ").decode("utf-8", "replace")


def client_environment(root: Path) -> dict[str, str]:
    """Variables with which a client finds the server of the stack under this root; none where it does not run."""
    servers = [process for process in processes_of(root) if process.name == SERVER]
    return _client_environment(servers[0].url, servers[0].password) if servers else {}


def _client_environment(url: str, password: str) -> dict[str, str]:
    return {"PREFECT_API_URL": f"{url}/api", PASSWORD_VARIABLE: password}


def password_file(root: Path) -> Path:
    """Where the password lies that `serve` made, for nobody but the user who did."""
    return root / "prefect" / "password"


def pages_url(url: str) -> str:
    """Where the results are, report pages among them: at the port after that of the UI's `url`."""
    return f"{url.rpartition(':')[0]}:{int(_port_of(url)) + 1}"


def serve(
    root: Path, port: int, folder: Path, arguments: Sequence[str] = (), location: str | None = None
) -> tuple[list[Process], str]:
    """Start what does not run and call `paraclip deploy` with `arguments`; returns the processes, and what it said.

    A server that lives keeps its port and password; one that is gone is given back, at the same address, to the workers
    and runs that it has left. Report pages get the next port. Relative paths in settings start from `folder`. Workers
    open `location` as their root, where that is a URL.
    """
    # Whichever link names it: a second stack would have the same database.
    root = root.resolve()
    # Two at once would each take the other's processes for left-overs.
    with lock(root / "prefect" / "serve.lock", wait_seconds=0):
        before = processes_of(root)
        running = {process.name for process in before}
        url = before[0].url if before else f"http://{HOST}:{port}"
        # A link may lead elsewhere by the time that a run opens it.
        location = location if location and "://" in location else str(root)
        environment = _environment(root, location, url, _password(root, before), folder)
        if before and _port_of(url) != str(port):
            log.warning("what runs under %s stays at %s, whatever --port says", root, url)
        remedy = "`paraclip stop` ends what waits for a server there" if before else "choose another with --port"
        for name, address in ((SERVER, url), (PAGES, pages_url(url))):
            if name not in running:
                _need_free_port(_port_of(address), remedy)
        if before and SERVER not in running:
            log.warning("the server under %s was gone: it is started again at %s, for what it has left", root, url)
        started: list[subprocess.Popen[bytes]] = []

        def start(name: str, *command: str) -> None:
            started.append(_start(root, name, list(command), environment, folder))

        try:
            if SERVER not in running:
                start(SERVER, "paraclip.flows.server", "start", "--host", HOST, "--port", _port_of(url))
                wait_for_server(started[0], url, _log(root, SERVER))
            report = _deploy(root, arguments, environment, folder)
            for pool, runs in zip(POOLS, (CPU_RUNS, 1), strict=True):
                if pool not in running:
                    command = ("prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-worker")
                    start(pool, *command, "--type", "process", "--limit", str(runs), "--install-policy", "never")
            if PAGES not in running:
                start(PAGES, "paraclip.flows.local_stack", PAGES, str(root / "results"), HOST, _port_of(pages_url(url)))
        except BaseException:
            pids = {process.pid for process in before}
            _end([process.pid for process in processes_of(root) if process.pid not in pids], root)
            raise
        finally:
            for process in started:
                # They outlive this process on purpose, so nobody waits for them.
                process.returncode = process.returncode or 0
        return [process for process in processes_of(root) if process.name], report


def stop(root: Path) -> list[str]:
    """End what `serve` started under this root, workers first, and nothing else; returns the names of what ran.

    Runs that are cut off are marked within two minutes after the next `serve`, by our automations.
    """
    processes = processes_of(root)
    _end([process.pid for process in processes if process.name in POOLS], root)
    # A run outlives its worker when that is killed, or when it was started just now.
    left = [process.pid for process in processes_of(root) if process.name != SERVER]
    _signal(left, signal.SIGKILL)
    _end([process.pid for process in processes if process.name == SERVER], root)
    return [process.name for process in processes if process.name]


def _end(pids: Collection[int], root: Path) -> None:
    _signal(pids, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    while left := [process.pid for process in processes_of(root) if process.pid in pids]:
        if time.monotonic() > end:
            log.warning("killed what did not end when asked: %s", ", ".join(map(str, left)))
            _signal(left, signal.SIGKILL)
            return
        time.sleep(0.1)


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _environment(root: Path, location: str, url: str, password: str, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        **UNWATCHED,
        "PREFECT_HOME": str(root / "prefect" / "server"),
        **_client_environment(url, password),
        # The port is open to every page that a browser shows and to every user of the machine. A page of another origin
        # reads no answer and writes nothing; one whose own name leads to 127.0.0.1 does not know the password.
        SERVER_PASSWORD_VARIABLE: password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        # Without it the UI calls port 4200, whatever the server's port is.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # In memory, which is the default, a restart of the server forgets who holds a concurrency limit, and ends them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        "PYTHONPATH": _python_path(),
        "PARACLIP_ROOT": location,
        "PARACLIP_HOME": str(folder.absolute()),
        ADDRESS_VARIABLE: pages_url(url),
        MARK: str(root),
    }


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))


def _port_of(url: str) -> str:
    return url.rpartition(":")[2]


def _need_free_port(port: str, remedy: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(port)))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}); {remedy}") from error


def _password(root: Path, running: Sequence[Process]) -> str:
    """The user's own, or one that is made once, so that a browser which knows it need not be told again."""
    own = os.environ.get(SERVER_PASSWORD_VARIABLE, "")
    if running:
        if own not in ("", running[0].password):
            raise ConfigError(f"{SERVER_PASSWORD_VARIABLE} is not the password of what runs; `paraclip stop` ends that")
        return running[0].password
    if own:
        if ":" not in own or own.split() != [own]:
            raise ConfigError(f"{SERVER_PASSWORD_VARIABLE} must be USER:PASSWORD, without blanks")
        return own
    path = password_file(root)
    if not path.exists():
        write_atomic(path, _write_password)
    with storage_errors(path):
        return path.read_text().strip()


def _write_password(file: BinaryIO) -> None:
    os.fchmod(file.fileno(), 0o600)
    file.write(f"admin:{secrets.token_hex(16)}\n".encode())


def _start(
    root: Path, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    """Start a part as the leader of its own session, with its output in its log."""
    path = _log(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A shell's background job ignores SIGINT, and its children would inherit that; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with path.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", *arguments],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, before)


def _log(root: Path, name: str) -> Path:
    return root / "logs" / f"prefect-{name}.log"


def wait_for_server(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server that was just started answers."""
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        with suppress(OSError, ValueError), urllib.request.urlopen(f"{url}/api/health", timeout=5) as answer:
            if json.load(answer) is True:
                return
        time.sleep(0.1)
    code = server.poll()
    what = f"did not answer within {START_SECONDS:g} seconds" if code is None else f"ended with exit code {code}"
    raise StageError(f"the Prefect server {what}. End of {log}:\n{_end_of(log)}")


def _deploy(root: Path, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """Register what `paraclip deploy` does, in a process that knows the server by its environment; gives its output."""
    command = [sys.executable, "-P", "-m", "paraclip.flows.cli", "deploy", *arguments]
    done = subprocess.run(command, env=dict(environment), cwd=folder, capture_output=True, text=True)
    _log(root, "deploy").write_text(done.stdout + done.stderr)
    if done.returncode == ConfigError.exit_code:
        raise ConfigError(done.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
    if done.returncode:
        raise StageError(
            f"the deployments were refused; end of {_log(root, 'deploy')}:\n{_end_of(_log(root, 'deploy'))}"
        )
    return done.stdout.strip()


def _end_of(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(lines) or f"(nothing; is there room in {path.parent}?)"


def prepare_prefect(root: Path) -> None:
    """Set Prefect's environment; call it before anything imports prefect.

    A server named by PREFECT_API_URL, or started by `paraclip serve` under the same root, is used, so that the run is
    seen there. Otherwise one is started for this run alone.
    """
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    quiet, server = dict(QUIET), {}
    if "PREFECT_API_URL" not in os.environ and not (server := client_environment(root)):
        quiet["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        server = start_local_server(quiet)
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    # Its address, password and folder, whatever the user's own are.
    os.environ.update(server)


def check_server() -> None:
    """See that the server takes this client; call it after :func:`prepare_prefect`, it imports prefect."""
    from prefect import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except Exception as error:
        # Something else that answers there makes Prefect's client raise whatever it stumbles over.
        raise ConfigError(
            f"the Prefect server {os.environ['PREFECT_API_URL']} does not take this run: {error}. See whether it runs "
            f"and whether {PASSWORD_VARIABLE} is the password that {SERVER_PASSWORD_VARIABLE} gave it, for example "
            "admin:PASSWORD; or unset PREFECT_API_URL for a server of the run's own"
        ) from error


def start_local_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Start a server and return the environment in which a client finds it. It ends when this process ends.

    Call it before prefect is imported: what is registered first for the end of a process runs last.
    """
    temp_dir = TempDir("prefect-")
    home, log = temp_dir.path, temp_dir.path / "server.log"
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    # Every page that a browser shows, and every user of this machine, reaches the port.
    password = f"admin:{secrets.token_hex(16)}"
    mine = {
        **OWN,
        SERVER_PASSWORD_VARIABLE: password,
        "PREFECT_HOME": str(home),
        "PYTHONPATH": _python_path(),
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "paraclip.flows.server", str(os.getpid()), str(port)],
            env={**os.environ, **environment, **mine},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    atexit.register(_end_server, server, temp_dir)
    url = f"http://{HOST}:{port}"
    wait_for_server(server, url, log)
    return {"PREFECT_HOME": str(home), **_client_environment(url, password)}


def _end_server(server: subprocess.Popen[bytes], temp_dir: TempDir) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    temp_dir.remove()


def show_own_logs() -> None:
    """Send this project's own log lines, and no one else's, to standard error."""
    # Python's handler of last resort writes to what is standard error at that moment: lines go above bars.
    handler = cast(Any, type(logging.lastResort))(logging.INFO)
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False


class Pages(SimpleHTTPRequestHandler):
    """Report pages beside the UI: a folder over HTTP, read-only, for whoever knows the password of the server."""

    login = os.environ.get(SERVER_PASSWORD_VARIABLE, "")

    def send_head(self):  # noqa: ANN201 - a private type of typeshed's
        """Refuse whoever does not know the password."""
        expected = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected.encode()):
            self.send_response(HTTPStatus.UNAUTHORIZED)
            self.send_header("WWW-Authenticate", 'Basic realm="paraclip"')
            self.end_headers()
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Let no page load or run anything: its texts are others'."""
        for name, value in PAGES_HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


if __name__ == "__main__":
    _, _, results, host, port = sys.argv
    Path(results).mkdir(parents=True, exist_ok=True)
    with ThreadingHTTPServer((host, int(port)), partial(Pages, directory=results)) as pages:
        pages.serve_forever()
