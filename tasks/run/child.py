"""A stage in a child process of its own: its memory is freed, its death is seen, and it never outlives its parent.

The child is ``python -m paraclip.tasks.child REQUEST``. It writes to a log file, never to its parent's pipes: an orphan
that holds the pipe of a flow run would keep that run "running". It stays in its parent's session and process group, so
that what stops the parent's group stops it too, and it dies when the parent does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import ValidationError

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import convert_disk_errors, storage_error
from paraclip.storage.roots import open_store
from paraclip.tasks.stage import carry_out
from paraclip.tasks.status import StatusFile, read_answer, read_failure, relay_from
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, CrashedError, ParaclipError, StageError
from paraclip_core.lifetime import TempDir, die_with
from paraclip_core.paths import PACKAGES
from paraclip_core.progress import Progress, silent

if TYPE_CHECKING:
    from paraclip.tasks.context import Run

log = logging.getLogger(__name__)

MAKE = "paraclip.tasks.child:make_artifact"
STATUS = "status.json"
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
"""How long a child that was asked to end may take."""
LOG_LINES = 15


class Stop(threading.Event):
    """Ends the processes that work for a run when it is set."""

    reason: BaseException | None = None
    """What ended the run."""

    def check(self) -> None:
        """See that the work may go on."""
        if self.is_set():
            raise StageError("its process was stopped; run again to go on from there")


def log_path(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    """Where a stage's output goes."""
    return store.root / "logs" / f"{stage}-{fingerprint}.log"


def run_in_child(draft: Draft, run: Run, inputs: Mapping[str, Artifact], progress: Progress = silent) -> Artifact:
    """Carry out a stage in a child process and return its artifact.

    The calling thread starts the child and waits for it, so it lasts as long as the child: the kernel ends the child
    when the thread that started it ends.
    """
    store = run.store
    path = log_path(store, draft.stage, draft.fingerprint)
    request = {
        "draft": asdict(draft),
        "settings": run.settings.model_dump(mode="json"),
        "root": store.location,
        "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
    }
    call_in_child(MAKE, request, run.settings, path, progress, run.stop)
    artifact = store.find(draft.stage, draft.fingerprint)
    if artifact is None:
        raise ArtifactError(f"{draft.stage} ended well but left no artifact {draft.fingerprint}; see {path}")
    return artifact


def call_in_child(
    work: str,
    request: Mapping[str, Any],
    settings: Settings,
    path: Path,
    progress: Progress = silent,
    stop: Stop | None = None,
) -> Any:
    """Call `work` with a JSON-ready request and a progress in a child process, and return its JSON-ready answer.

    Args:
        work: the function, as ``module:name``.
        request: what it gets.
        settings: the run's settings; `run.threads` bounds the child's threads, `run.stage_timeout` its seconds.
        path: the child's log file, which is appended to.
        progress: told what the child reports.
        stop: ends the child when it is set.
    """
    with TempDir() as folder, _open_log(path) as output:
        text = json.dumps({"parent": os.getpid(), "work": work, "request": dict(request)})
        with convert_disk_errors(folder):
            (folder / "request.json").write_text(text)
        began, status = output.tell(), folder / STATUS
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "paraclip.tasks.child", str(folder / "request.json")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(settings),
        )
        try:
            _watch(child, relay_from(status, progress), stop or Stop(), settings.run.stage_timeout)
        except BaseException:
            # A cancelled flow raises a BaseException here; the child must not go on without it.
            _end(child)
            raise
        if child.returncode:
            # A child that has answered can still crash: libraries do when they are unloaded.
            raise read_failure(status, StageError) or _crash(child.returncode, path, began)
        return read_answer(status)


def _open_log(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise storage_error(error, path) from error


def _environment(settings: Settings) -> dict[str, str]:
    environment = dict(os.environ)
    # -P keeps the working directory off the path: a user's own `queue.py` must not be taken for Python's.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGES), environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    # Spinning OpenMP threads slow small matrix products down forty times on a busy machine.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment.setdefault("DO_NOT_TRACK", "1")
    if settings.run.threads:
        environment["OMP_NUM_THREADS"] = str(settings.run.threads)
    return environment


def _watch(child: subprocess.Popen[bytes], look: Callable[[], None], stop: Stop, timeout: float | None) -> None:
    began = time.monotonic()
    while child.returncode is None:
        stop.check()
        if timeout is not None and time.monotonic() - began > timeout:
            raise CrashedError(f"its process took more than run.stage_timeout={timeout:g} s; run again to go on")
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
        look()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)
    finally:
        # A second interrupt while waiting must not save it either.
        child.kill()
        child.wait()


def _crash(code: int, path: Path, began: int) -> CrashedError:
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
    with path.open("rb") as file:
        file.seek(began)
        lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    end = "".join(f"\n  {line}" for line in lines) or " (it wrote nothing)"
    hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    return CrashedError(f"its process {how}{hint}; run again to go on from there. End of {path}:{end}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def settings_of(tree: Mapping[str, Any]) -> Settings:
    """The settings that another process sent; each reads the code anew, and so may know other options."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors()[:3])
        raise StageError(
            f"the code here does not take the settings of this run ({names}): it was changed since the run began, or "
            "is another version; run again to go on with it"
        ) from error


def make_artifact(request: Mapping[str, Any], progress: Progress) -> None:
    """Carry out a stage, in the process made for it."""
    from paraclip.tasks.context import Run

    draft = Draft(**request["draft"])
    run = Run(settings_of(request["settings"]), open_store(request["root"]))
    inputs = {}
    for name, value in request["inputs"].items():
        artifact = run.store.find(name, value)
        if artifact is None:
            raise ArtifactError(f"{draft.stage} needs the artifact {name}/{value}, which is gone; run {name} again")
        inputs[name] = artifact
    stage = run.stages[draft.stage]
    if stage.version != draft.stage_version:
        # This process has read the code anew, and its output must not get the name of the earlier code's.
        raise StageError(
            f"{draft.stage} is version {stage.version} by now and was {draft.stage_version} when this run began: "
            f"the code was changed; run again to go on with it"
        )
    carry_out(stage, draft, run, inputs, progress)


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
        work: Callable[[Mapping[str, Any], Progress], Any] = getattr(import_module(module), function)
        with convert_disk_errors(request_path.parent):
            status.answer(work(request, status.progress))
    except ParaclipError as error:
        log.exception("%s failed", name)
        status.fail(error)
        return error.exit_code
    log.info("%s is done", name)
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
