"""Flow runs whose processes a household ended: marked as crashed, so that they can be retried when it is back."""

from __future__ import annotations

import base64
import json
import logging
import os
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from storage.files import read_json, write_json

__all__ = ["PASSWORD_VARIABLE", "close_remembered", "close_runs", "remember", "worker_name"]

log = logging.getLogger(__name__)

PAGE = 200
"""The most that Prefect's API gives at once."""
PASSWORD_VARIABLE = "PREFECT_API_AUTH_STRING"
"""What Prefect's own clients send to a server that has a password."""
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")
WORKER_LABEL = "prefect.worker.name"
"""Label of a flow run that names the worker which took it last."""


def worker_name(pool: str) -> str:
    """What a household calls its worker of this pool."""
    return f"{pool}-worker"


def close_runs(api_url: str, pids: Collection[int], pools: Collection[str]) -> list[str]:
    """Mark those runs of the work pools as crashed that a household's workers had, and return their names.

    Call it while the household has no worker. A run that has been taken and has no process yet counts, too: it would
    be pending for ever and hold its queue's place. A run of a worker elsewhere, or of a command that only uses the
    server, is none of them.

    Args:
        api_url: where the server's API is.
        pids: processes that were ended.
        pools: the household's work pools.

    Raises:
        OSError: the server does not answer.
        ValueError: it answers nonsense.
    """
    ended = {str(pid) for pid in pids}
    workers = {worker_name(pool) for pool in pools}
    cut_off = [
        run
        for run in list(_unfinished(api_url, pools))
        if run.get("infrastructure_pid") in ended or _taken(run, workers)
    ]
    for run in cut_off:
        state = {"type": "CRASHED", "name": "Crashed", "message": "its process or worker was ended; Retry goes on"}
        _post(f"{api_url}/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return [run["name"] for run in cut_off]


def remember(root: Path, pids: Collection[int]) -> None:
    """Keep the pids of runs that were cut off while their server was gone.

    Raises:
        ArtifactError: the root cannot be written.
    """
    if pids:
        write_json(_file(root), sorted({*pids, *_remembered(root)}))


def close_remembered(root: Path, api_url: str, pools: Collection[str]) -> None:
    """Close what :func:`remember` kept and what a lost machine left, now that the server is back without its workers.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        closed = close_runs(api_url, _remembered(root), pools)
    except (OSError, ValueError) as error:
        log.warning("runs that were cut off stay marked as running: %s", error)
        return
    _file(root).unlink(missing_ok=True)
    if closed:
        log.warning("cut off when the server was gone, and now marked as crashed: %s", ", ".join(closed))


def _taken(run: dict[str, Any], workers: Collection[str]) -> bool:
    worker = (run.get("labels") or {}).get(WORKER_LABEL)
    # A worker says who it is some seconds after it has taken a run.
    return worker in workers or (worker is None and run["state_type"] == "PENDING")


def _file(root: Path) -> Path:
    return root / "prefect" / "cut_off.json"


def _remembered(root: Path) -> list[int]:
    return read_json(_file(root)) if _file(root).exists() else []


def _unfinished(api_url: str, pools: Collection[str]) -> Iterator[dict[str, Any]]:
    wanted = {
        "flow_runs": {"state": {"type": {"any_": list(UNFINISHED)}}},
        "work_pools": {"name": {"any_": list(pools)}},
        "sort": "ID_DESC",
        "limit": PAGE,
    }
    for page in range(1_000_000):
        found = _post(f"{api_url}/flow_runs/filter", {**wanted, "offset": page * PAGE})
        yield from found
        if len(found) < PAGE:
            return


def _post(url: str, body: object) -> Any:
    headers = {"Content-Type": "application/json"}
    if password := os.environ.get(PASSWORD_VARIABLE):
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)
