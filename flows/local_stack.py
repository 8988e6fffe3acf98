"""`paraclip serve` and `paraclip stop`: a Prefect server, report pages, two pools with workers, deployments.

No file says what runs: each process that `serve` starts, and each that those start, has the root in its environment.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flows.logs import OWN_LOGGERS
from flows.pages import ADDRESS_VARIABLE
from paraclip_core.errors import ConfigError, StageError
from storage.locks import lock

__all__ = [
    "CPU_RUNS",
    "HEARTBEAT",
    "NOT_TAKEN",
    "PASSWORD_VARIABLE",
    "POOLS",
    "SERVER",
    "TAG",
    "Process",
    "living_api_url",
    "pages_url",
    "processes_of",
    "serve",
    "stop",
]

log = logging.getLogger(__name__)

POOLS = ("paraclip-cpu", "paraclip-gpu")
SERVER, PAGES = "server", "pages"
TAG = "paraclip"
"""Tag of every deployment and so of its runs; automations touch no others."""
HEARTBEAT = "30"
"""Seconds between the heartbeats of a flow run."""
NOT_TAKEN = 2
"""Exit code of `flows.setup` where the server does not take it."""
CPU_RUNS = 8
"""How many flow runs the CPU worker carries out at once; the GPU worker one, for two would share its memory."""
PASSWORD_VARIABLE = "PREFECT_API_AUTH_STRING"
"""What Prefect's own clients send to a server that has a password."""
HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 180.0, 30.0
LOG_LINES = 15
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
MARK = "PARACLIP_STACK"
"""Environment variable with the root, of all that `serve` has started."""
PROC = Path("/proc")
PART = re.compile(r" -m (?:prefect (server) start|prefect worker start --pool (\S+)|flows\.(pages)) ")
URL = re.compile(r" PREFECT_API_URL=(\S+)/api ")


class Process(NamedTuple):
    """A living process of a local stack."""

    name: str
    """`server`, `pages`, the pool of a worker, or nothing for what a worker has started."""
    pid: int
    url: str
    """Where the stack's UI is."""


def processes_of(root: Path) -> list[Process]:
    """What runs of the stack under this root, whoever its parents are by now."""
    mark = f" {MARK}={root.absolute()} "
    found = []
    for pid, text in _all_processes():
        if mark in text and (url := URL.search(text)):
            part = PART.search(text)
            found.append(Process((part[1] or part[2] or part[3]) if part else "", pid, url[1]))
    return found


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


def living_api_url(root: Path) -> str | None:
    """API of the server of the stack under this root, None where it does not run."""
    servers = [process for process in processes_of(root) if process.name == SERVER]
    return f"{servers[0].url}/api" if servers else None


def pages_url(url: str) -> str:
    """Where the results are, report pages among them: at the port after that of the UI's `url`."""
    address, _, port = url.rpartition(":")
    return f"{address}:{int(port) + 1}"


def serve(root: Path, port: int, folder: Path, prefect_file: Path, location: str | None = None) -> list[Process]:
    """Start what does not run and deploy everything; a server that lives keeps its port.

    Args:
        root: artifact root; logs and Prefect's own data go below it.
        port: port of the server, on 127.0.0.1; the next one is that of the report pages.
        folder: working folder of the workers, which relative paths in settings start from.
        prefect_file: the deployments.
        location: what the workers open as their root, where that is not `root` itself.

    Raises:
        ConfigError: the port is taken, or the server wants another password.
        LockedError: another process is starting it just now.
        StageError: a part did not start; the message has the end of its log.
    """
    root = root.absolute()
    # Two at once would each take the other's processes for left-overs.
    with lock(root / "prefect" / "serve.lock", wait_seconds=0):
        url = living_api_url(root)
        if url is None and (left := stop(root)):
            log.warning("the server under %s was gone; ended what it had left: %s", root, ", ".join(left))
        _need_its_password(os.environ)
        if url is None:
            for needed in (port, port + 1):
                _need_free_port(needed)
        environment = _environment(root, location or str(root), url or f"http://{HOST}:{port}/api", folder)
        before = {process.pid for process in processes_of(root)}
        try:
            _start_missing(root, port, environment, folder, prefect_file)
        except BaseException:
            _end([process.pid for process in processes_of(root) if process.pid not in before], root)
            raise
        return [process for process in processes_of(root) if process.name]


def _start_missing(root: Path, port: int, environment: Mapping[str, str], folder: Path, prefect_file: Path) -> None:
    running = {process.name for process in processes_of(root)}
    if SERVER not in running:
        command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
        server = _start(root, SERVER, command, environment, folder)
        try:
            _wait_for_health(root, f"{environment['PREFECT_API_URL']}/health", server)
        finally:
            # It outlives this process on purpose, so nobody waits for it; nor for the workers.
            server.returncode = 0
    _set_up(root, prefect_file, environment, folder)
    for pool in POOLS:
        if pool not in running:
            limit = "1" if pool.endswith("gpu") else str(CPU_RUNS)
            command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"{pool}-worker"]
            command += ["--limit", limit, "--install-policy", "never"]
            _start(root, pool, command, environment, folder).returncode = 0
    if PAGES not in running:
        command = ["flows.pages", str(root / "results"), HOST, environment[ADDRESS_VARIABLE].rpartition(":")[2]]
        _start(root, PAGES, command, environment, folder).returncode = 0


def stop(root: Path) -> list[str]:
    """End what `serve` started under this root, workers first, and nothing else; returns the names of what ran.

    Runs that are cut off are marked within two minutes after the next `serve`, by the automations of `flows.setup`.
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


def _environment(root: Path, location: str, api_url: str, folder: Path) -> dict[str, str]:
    here = str(Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(root / "prefect" / "server"),
        "PREFECT_API_URL": api_url,
        # Without it the UI calls port 4200, whatever the server's port is.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # In memory, which is the default, a restart of the server forgets who holds a concurrency limit, and ends them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        "PARACLIP_ROOT": location,
        "PARACLIP_HOME": str(folder.absolute()),
        ADDRESS_VARIABLE: pages_url(api_url.removesuffix("/api")),
        MARK: str(root),
    }


def _need_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error


def _need_its_password(environ: Mapping[str, str]) -> None:
    if (password := environ.get("PREFECT_SERVER_API_AUTH_STRING")) and password != environ.get(PASSWORD_VARIABLE):
        raise ConfigError(
            f"PREFECT_SERVER_API_AUTH_STRING gives the server a password that {PASSWORD_VARIABLE} does not hold; set "
            f"both to the same, for workers and every `paraclip run` and `stop` need the second"
        )


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


def _wait_for_health(root: Path, url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        with suppress(urllib.error.URLError, OSError, ValueError), urllib.request.urlopen(url, timeout=5) as answer:
            if json.load(answer) is True:
                return
        time.sleep(0.3)
    what = f"did not answer within {START_SECONDS:g} seconds" if server.returncode is None else "did not start"
    raise StageError(f"the Prefect server {what}; end of {_log(root, SERVER)}:\n{_end_of(_log(root, SERVER))}")


def _set_up(root: Path, prefect_file: Path, environment: Mapping[str, str], folder: Path) -> None:
    """Create pools, deployments and the automations, in a process that knows the server by its environment."""
    command = [sys.executable, "-P", "-m", "flows.setup", str(prefect_file.absolute())]
    done = subprocess.run(command, env=dict(environment), cwd=folder, capture_output=True, text=True)
    _log(root, "setup").write_text(done.stdout + done.stderr)
    if done.returncode == NOT_TAKEN:
        raise ConfigError(done.stderr.strip().rpartition("\n")[2])
    if done.returncode:
        raise StageError(f"the deployments were refused; end of {_log(root, 'setup')}:\n{_end_of(_log(root, 'setup'))}")


def _end_of(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:])
    except OSError:
        return "(nothing was written)"
