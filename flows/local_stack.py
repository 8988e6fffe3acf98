"""Prefect on this machine: the stack of `paraclip serve` and `paraclip stop`.

It consists of a server, report pages, two pools with workers, and deployments. No file records what runs: every process
that `serve` starts, directly or not, has the root and the server's address and password in its environment.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import BinaryIO, NamedTuple

from paraclip.flows.names import (
    ADDRESS_VARIABLE,
    CPU_RUNS,
    HOST,
    MARK,
    OWN_LOGGERS,
    PASSWORD_VARIABLE,
    POOLS,
    SERVER_PASSWORD_VARIABLE,
    UNWATCHED,
)
from paraclip.storage.files import write_atomic
from paraclip.storage.locks import lock
from paraclip_core.errors import ConfigError, StageError
from paraclip_core.paths import PACKAGES

log = logging.getLogger(__name__)

SERVER, PAGES = "server", "pages"
START_SECONDS, STOP_SECONDS = 180.0, 30.0
LOG_LINES = 15
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
PROC = Path("/proc")
PART = re.compile(r" -m (?:paraclip\.flows\.(server|pages)|prefect worker start --pool (\S+)) ")
URL = re.compile(r" PREFECT_API_URL=(\S+)/api ")
PASSWORD = re.compile(rf" {PASSWORD_VARIABLE}=(\S+) ")


class Process(NamedTuple):
    """A live process of a local stack."""

    name: str
    """`server`, `pages`, the pool of a worker, or empty for what a worker has started."""
    pid: int
    url: str
    """URL of the stack's UI."""
    password: str = ""
    """What the server's clients log in with, `USER:PASSWORD`."""


def processes_of(root: Path) -> list[Process]:
    """The live processes of the stack under this root, whatever their parents are by now."""
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
    """Every process of this user: its command line, then its environment, with a blank around each part."""
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
    """Variables with which a client finds the server of the stack under this root; empty if it does not run."""
    servers = [process for process in processes_of(root) if process.name == SERVER]
    return client_variables(servers[0].url, servers[0].password) if servers else {}


def client_variables(url: str, password: str) -> dict[str, str]:
    """Variables with which a client finds the server whose UI is at `url`."""
    return {"PREFECT_API_URL": f"{url}/api", PASSWORD_VARIABLE: password}


def password_file(root: Path) -> Path:
    """Path of the password that `serve` made, which only its user can read."""
    return root / "prefect" / "password"


def pages_url(url: str) -> str:
    """URL of the results, report pages included: the port after that of the UI's `url`."""
    return f"{url.rpartition(':')[0]}:{int(_port_of(url)) + 1}"


def serve(
    root: Path, port: int, folder: Path, arguments: Sequence[str] = (), location: str | None = None
) -> tuple[list[Process], str]:
    """Start what does not run and call `paraclip deploy` with `arguments`; returns the processes and its output.

    A running server keeps its port and password; one that is gone is started again at the same address. Report pages
    get the next port. Relative paths in settings start from `folder`. Workers open `location` as their root if it is a
    URL.
    """
    # The same folder through any link: a second stack would use the same database.
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
            log.warning("the server under %s was gone: starting it again at %s, for the runs that it left", root, url)
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
                start(PAGES, "paraclip.flows.pages", str(root / "results"), HOST, _port_of(pages_url(url)))
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
    """End what `serve` started under this root, workers first, and nothing else; returns the names of the processes.

    Our automations mark runs that were cut off within two minutes of the next `serve`.
    """
    processes = processes_of(root)
    _end([process.pid for process in processes if process.name in POOLS], root)
    # A run outlives its worker if the worker is killed, or if the run has only just started.
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
        **client_variables(url, password),
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
        "PYTHONPATH": python_path(),
        "PARACLIP_ROOT": location,
        "PARACLIP_HOME": str(folder.absolute()),
        ADDRESS_VARIABLE: pages_url(url),
        MARK: str(root),
    }


def python_path() -> str:
    """The import path with which a process finds this package, whatever its working directory."""
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
    """The user's own password, or one that is made once, so that a browser that knows it need not ask again."""
    own = os.environ.get(SERVER_PASSWORD_VARIABLE, "")
    if running:
        if own not in ("", running[0].password):
            raise ConfigError(
                f"{SERVER_PASSWORD_VARIABLE} is not the password of the running server; `paraclip stop` ends it"
            )
        return running[0].password
    if own:
        if ":" not in own or own.split() != [own]:
            raise ConfigError(f"{SERVER_PASSWORD_VARIABLE} must be USER:PASSWORD, without blanks")
        return own
    path = password_file(root)

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.write(f"admin:{secrets.token_hex(16)}\n".encode())

    if not path.exists():
        write_atomic(path, write)
    return path.read_text().strip()


def _start(
    root: Path, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    """Start a part as the leader of its own session, with its output in a log."""
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
    """Run `paraclip deploy` in a process whose environment names the server; returns its output."""
    command = [sys.executable, "-P", "-m", "paraclip.flows.cli", "deploy", *arguments]
    done = subprocess.run(command, env=dict(environment), cwd=folder, capture_output=True, text=True)
    log_path = _log(root, "deploy")
    log_path.write_text(done.stdout + done.stderr)
    if done.returncode == ConfigError.exit_code:
        raise ConfigError(done.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
    if done.returncode:
        raise StageError(f"the deployments were refused; end of {log_path}:\n{_end_of(log_path)}")
    return done.stdout.strip()


def _end_of(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(lines) or f"(nothing; is there room in {path.parent}?)"
