"""`paraclip serve` and `paraclip stop`: a Prefect server, two work pools, a worker each, and every deployment."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.cut_off import PASSWORD_VARIABLE, close_remembered, close_runs, remember, worker_name
from flows.logs import OWN_LOGGERS
from flows.processes import Process, carriers, end_all, family, kill, living, start
from flows.server_database import seed_database
from paraclip_core.errors import ArtifactError, ConfigError, StageError
from storage.files import read_json, write_json
from storage.locks import lock

__all__ = [
    "CPU_RUNS",
    "HEARTBEAT",
    "NOT_TAKEN",
    "PASSWORD_VARIABLE",
    "POOLS",
    "TAG",
    "Household",
    "living_api_url",
    "read_household",
    "serve",
    "stop",
]

log = logging.getLogger(__name__)

POOLS = ("paraclip-cpu", "paraclip-gpu")
TAG = "paraclip"
"""Tag of every deployment and so of its runs; automations touch no others."""
HEARTBEAT = "30"
"""Seconds between the heartbeats of a flow run."""
NOT_TAKEN = 2
"""Exit code of `flows.setup` where the server does not take it."""
CPU_RUNS = 8
"""How many flow runs the CPU worker carries out at once; the GPU worker one, for two would share its memory."""
HOST = "127.0.0.1"
START_SECONDS = 180.0
LOG_LINES = 15
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
MARK = "PARACLIP_HOUSEHOLD"
"""Environment variable of the workers and of all that they start: the root of the household."""


@dataclass(frozen=True)
class Household:
    """What was started, as the file `prefect/household.json` under the root remembers it."""

    url: str
    """Where the UI is."""
    processes: tuple[Process, ...]

    @property
    def api_url(self) -> str:
        """Where clients find the API."""
        return f"{self.url}/api"


def read_household(root: Path) -> Household | None:
    """The household under this root, if one was started.

    Raises:
        ArtifactError: its file is damaged.
    """
    path = _file(root)
    if not path.exists():
        return None
    told = read_json(path)
    try:
        return Household(told["url"], tuple(Process(**process) for process in told["processes"]))
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not as `paraclip serve` writes it ({error}); delete it, and end what it had started by hand"
        ) from error


def living_api_url(root: Path) -> str | None:
    """API of the household under this root, None where its server does not run."""
    household = read_household(root)
    if household is None or not any(living(process) for process in household.processes if process.name == "server"):
        return None
    return household.api_url


def serve(root: Path, port: int, folder: Path, prefect_file: Path, location: str | None = None) -> Household:
    """Start what does not run and deploy everything; a server that lives keeps its port.

    Args:
        root: artifact root; logs and Prefect's own data go below it.
        port: port of the server, on 127.0.0.1.
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
    with lock(root / "prefect" / "household.lock", wait_seconds=0):
        return _serve(root, port, folder, prefect_file, location or str(root))


def _serve(root: Path, port: int, folder: Path, prefect_file: Path, location: str) -> Household:
    running, url = _running(root) or ([], f"http://{HOST}:{port}")
    _need_its_password(os.environ)
    if not running:
        _need_free_port(port)
    environment = _environment(root, location, url, folder)
    started = list(running)
    try:
        if not running:
            seed_database(Path(environment["PREFECT_HOME"]))
            server = ["server", "start", "--host", HOST, "--port", str(port)]
            _start(root, url, started, "server", server, environment, folder)
            _wait_for_health(root, f"{url}/api/health", started[0])
            close_remembered(root, f"{url}/api", POOLS)
        _set_up(root, prefect_file, environment, folder)
        # By this, flow runs are known as this household's even if their worker is killed.
        environment = {**environment, MARK: str(root)}
        for pool in POOLS:
            if any(process.name == pool for process in running):
                continue
            worker = ["worker", "start", "--pool", pool, "--type", "process", "--name", worker_name(pool)]
            worker += ["--limit", "1" if pool.endswith("gpu") else str(CPU_RUNS), "--install-policy", "never"]
            _start(root, url, started, pool, worker, environment, folder)
    except BaseException:
        end_all(process for process in started if process not in running)
        if not running:
            _file(root).unlink(missing_ok=True)
        raise
    return Household(url, tuple(started))


def _running(root: Path) -> tuple[list[Process], str] | None:
    """What runs of the household under this root, and its URL; without a server the rest is ended."""
    if living_api_url(root) and (household := read_household(root)):
        return [process for process in household.processes if living(process)], household.url
    if left := stop(root):
        log.warning("the server under %s was gone; ended what it had left: %s", root, ", ".join(left))
    return None


def stop(root: Path) -> list[str]:
    """End the household's processes, workers first, and nothing else; returns the names of those that ran."""
    household = read_household(root)
    if household is None:
        return []
    ran = [process.name for process in household.processes if living(process)]
    workers = [process for process in household.processes if process.name != "server"]
    runs = family(workers)
    for name in end_all(workers):
        log.warning("%s did not end when asked and was killed", name)
    # A run outlives its worker when that is killed, or when it was started just now.
    runs |= carriers(MARK, str(root.absolute()))
    kill(runs)
    _close(root, household, "server" in ran, runs)
    end_all(process for process in household.processes if process.name == "server")
    _file(root).unlink(missing_ok=True)
    return ran


def _close(root: Path, household: Household, served: bool, pids: Collection[int]) -> None:
    try:
        if not served:
            raise OSError("the server is gone")
        close_runs(household.api_url, pids, POOLS)
    except (OSError, ValueError) as error:
        try:
            remember(root, pids)
        except ArtifactError as full:
            # A full disk must not keep the server from being ended.
            log.warning("runs that were cut off stay marked as running: %s", full)
            return
        if pids:
            log.warning("runs that were cut off stay marked as running until the next `paraclip serve`: %s", error)


def _file(root: Path) -> Path:
    return root / "prefect" / "household.json"


def _environment(root: Path, location: str, url: str, folder: Path) -> dict[str, str]:
    here = str(Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(root / "prefect" / "server"),
        "PREFECT_API_URL": f"{url}/api",
        # Without it the UI calls port 4200, whatever the server's port is.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # In memory, which is the default, a restart of the server forgets who holds a concurrency limit, and ends them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        "PARACLIP_ROOT": location,
        "PARACLIP_HOME": str(folder.absolute()),
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
    root: Path,
    url: str,
    started: list[Process],
    name: str,
    arguments: list[str],
    environment: Mapping[str, str],
    folder: Path,
) -> None:
    command = [sys.executable, "-P", "-m", "prefect", *arguments]
    started.append(start(name, command, environment, _log(root, name), folder))
    # Written after each start, so that `stop` finds all of them even if this process is killed in between.
    write_json(_file(root), {"url": url, "processes": [asdict(process) for process in started]})


def _log(root: Path, name: str) -> Path:
    return root / "logs" / f"prefect-{name}.log"


def _wait_for_health(root: Path, url: str, server: Process) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if not living(server):
            break
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if json.load(answer) is True:
                    return
        except (urllib.error.URLError, OSError, ValueError):
            pass
        time.sleep(0.3)
    what = f"did not answer within {START_SECONDS:g} seconds" if living(server) else "did not start"
    raise StageError(f"the Prefect server {what}; end of {_log(root, 'server')}:\n{_end_of(_log(root, 'server'))}")


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
