"""Runs a stage in a child process: its memory is freed, its death is noticed, and it never outlives its parent.

The child is ``python -m paraclip.tasks.run.child REQUEST``. It writes to a log file, never to its parent's pipes: an
orphan that holds the pipe of a flow run would keep that run "running". It stays in its parent's session and process
group, so that a signal to the parent's group stops it too, and it dies when the parent does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.run.run import Stop
from paraclip.tasks.run.status import StatusFile, read_failure, relay_from
from paraclip_core.config import Settings
from paraclip_core.errors import CrashedError, ParaclipError, StageError
from paraclip_core.lifetime import TempDir, die_with
from paraclip_core.paths import PACKAGES
from paraclip_core.progress import Progress, silent

log = logging.getLogger(__name__)

STATUS = "status.json"
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
"""How long a child may take to end after it was asked to."""
LOG_LINES = 15


def log_path(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    """Path of a stage's log file."""
    return store.root / "logs" / f"{stage}-{fingerprint}.log"


def call_in_child(
    work: str,
    request: Mapping[str, Any],
    settings: Settings,
    path: Path,
    progress: Progress = silent,
    stop: Stop | None = None,
) -> None:
    """Call `work` (``module:name``) with a JSON-ready request and a progress in a child.

    The calling thread starts the child and waits for it, so it outlives the child: the kernel ends the child when the
    thread that started it ends. The child's output is appended to the log file `path`; setting `stop` ends the child.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log_file = path.open("a", encoding="utf-8", errors="replace")
    with TempDir() as folder, log_file as output:
        text = json.dumps({"parent": os.getpid(), "work": work, "request": dict(request)})
        (folder / "request.json").write_text(text)
        began, status = output.tell(), folder / STATUS
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "paraclip.tasks.run.child", str(folder / "request.json")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(settings),
        )
        try:
            _watch(child, relay_from(status, progress), stop or Stop())
        except BaseException:
            # A cancelled flow raises a BaseException here; the child must not continue without it.
            _end(child)
            raise
        if child.returncode:
            # A finished child can still crash: some libraries do when they are unloaded.
            raise read_failure(status, StageError) or _crash(child.returncode, path, began)


def _environment(settings: Settings) -> dict[str, str]:
    environment = dict(os.environ)
    # -P keeps the working directory off the path: a user's `queue.py` must not shadow Python's.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGES), environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    # Spinning OpenMP threads slow small matrix products down forty times on a busy machine.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment.setdefault("DO_NOT_TRACK", "1")
    if settings.run.threads:
        environment["OMP_NUM_THREADS"] = str(settings.run.threads)
    return environment


def _watch(child: subprocess.Popen[bytes], look: Callable[[], None], stop: Stop) -> None:
    while child.returncode is None:
        stop.check()
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
        look()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)
    finally:
        # A second interrupt while waiting must not keep it alive.
        child.kill()
        child.wait()


def _crash(code: int, path: Path, began: int) -> CrashedError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    with path.open("rb") as file:
        file.seek(began)
        lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    end = "".join(f"\n  {line}" for line in lines) or " (it wrote nothing)"
    hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    return CrashedError(f"its process {how}{hint}; run again to go on from there. End of {path}:{end}")


def _main(request_path: Path) -> int:
    call: dict[str, Any] = json.loads(request_path.read_text())
    die_with(call["parent"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("botocore", "aiobotocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    request, status = call["request"], StatusFile(request_path.with_name(STATUS))
    name = f"{request['draft']['stage']} {request['draft']['fingerprint']}"
    log.info("%s starts in process %s", name, os.getpid())
    module, _, function = call["work"].partition(":")
    try:
        work: Callable[[Mapping[str, Any], Progress], None] = getattr(import_module(module), function)
        work(request, status.progress)
    except ParaclipError as error:
        log.exception("%s failed", name)
        status.fail(error)
        return error.exit_code
    log.info("%s is done", name)
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
