"""A stage in a child process of its own: its memory is freed, its death is seen, and it never outlives its parent.

The child is ``python -m tasks.child REQUEST``. It writes to a log file, never to its parent's pipes: an orphan that
holds the pipe of a flow run would keep that run "running". It stays in its parent's session and process group, so
that what stops the parent's group stops it too, and it dies when the parent does.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import paraclip_core.errors
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ParaclipError, StageError, with_notes
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore, Draft
from storage.atomic import storage_error
from tasks.stage import Stage, carry_out

__all__ = ["STAGES_REFERENCE", "die_with", "log_path", "run_in_child"]

log = logging.getLogger(__name__)

STAGES_REFERENCE = "tasks.dag:STAGES"
"""Where the child finds the stages, as ``module:name``."""

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
"""How long a child that was asked to end may take."""
LOG_LINES = 15
PR_SET_PDEATHSIG = 1


def log_path(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    """Where a stage's output goes."""
    return store.root / "logs" / f"{stage}-{fingerprint}.log"


def run_in_child(
    draft: Draft,
    settings: Settings,
    store: ArtifactStore,
    inputs: Mapping[str, Artifact],
    progress: Progress = silent,
    stages: str = STAGES_REFERENCE,
) -> Artifact:
    """Carry out a stage in a child process and return its artifact.

    The calling thread starts the child and waits for it, so it lasts as long as the child: the kernel ends the child
    when the thread that started it ends.

    Raises:
        ParaclipError: what the stage raised, of the same class.
        StageError: the child crashed or was killed; the message has the signal and the end of its log.
    """
    path = log_path(store, draft.stage, draft.fingerprint)
    with tempfile.TemporaryDirectory(prefix="paraclip-") as folder, _open_log(path) as output:
        desk = Path(folder)
        request = {
            "parent": os.getpid(),
            "stages": stages,
            "draft": asdict(draft),
            "settings": settings.model_dump(mode="json"),
            "root": str(store.root),
            "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
        }
        (desk / "request.json").write_text(json.dumps(request))
        began = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.child", str(desk / "request.json")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(settings),
        )
        try:
            _watch(child, desk / "progress.json", progress)
        except BaseException:
            # A cancelled flow raises a BaseException here; the child must not go on without it.
            _end(child)
            raise
        _raise_failure(child.returncode, desk / "answer.json", path, began)
    artifact = store.find(draft.stage, draft.fingerprint)
    if artifact is None:
        raise ArtifactError(f"{draft.stage} ended well but left no artifact {draft.fingerprint}; see {path}")
    return artifact


def _open_log(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise storage_error(error, path) from error


def _environment(settings: Settings) -> dict[str, str]:
    environment = dict(os.environ)
    # -P keeps the working directory off the path: a user's own folder "storage" must not be taken for ours.
    here = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    # Spinning OpenMP threads slow small matrix products down forty times on a busy machine.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment.setdefault("DO_NOT_TRACK", "1")
    if settings.run.threads:
        environment["OMP_NUM_THREADS"] = str(settings.run.threads)
    return environment


def _watch(child: subprocess.Popen[bytes], path: Path, progress: Progress) -> None:
    seen = 0
    while child.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
        with suppress(FileNotFoundError):
            stamp = path.stat().st_mtime_ns
            if stamp != seen:
                seen = stamp
                told = json.loads(path.read_text())
                progress(told["done"], told["total"], **told["facts"])


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)
    finally:
        # A second interrupt while waiting must not save it either.
        child.kill()
        child.wait()


def _raise_failure(code: int, answer: Path, path: Path, began: int) -> None:
    if code == 0:
        return
    if answer.exists():
        told = json.loads(answer.read_text())
        raised = getattr(paraclip_core.errors, told["class"], StageError)
        raise raised(told["text"])
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
    with path.open("rb") as file:
        file.seek(began)
        lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    end = "".join(f"\n  {line}" for line in lines) or " (it wrote nothing)"
    hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    raise StageError(f"its process {how}{hint}; run again to go on from there. End of {path}:{end}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _report_to(path: Path) -> Progress:
    """A progress that leaves its latest state in `path`, five times a second at most."""
    last = 0.0

    def progress(done: int, total: int | None, **facts: float | int | str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.2 and done != total:
            return
        last = now
        draft = path.with_suffix(".new")
        # A full temporary folder is no reason to give up the work itself.
        with suppress(OSError):
            draft.write_text(json.dumps({"done": int(done), "total": total, "facts": facts}, default=float))
            draft.replace(path)

    return progress


def die_with(parent: int) -> None:
    """End this process when `parent` ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_look_for_parent, args=(parent,), daemon=True).start()
    # It may have ended before the line above.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _look_for_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _stages(reference: str) -> Mapping[str, Stage]:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def _main(request_path: Path) -> int:
    request: dict[str, Any] = json.loads(request_path.read_text())
    die_with(request["parent"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    draft = Draft(**request["draft"])
    log.info("%s %s starts in process %s", draft.stage, draft.fingerprint, os.getpid())
    try:
        store = ArtifactStore(request["root"])
        inputs = {}
        for name, value in request["inputs"].items():
            found = store.find(name, value)
            if found is None:
                raise ArtifactError(f"{draft.stage} needs the artifact {name}/{value}, which is gone; run {name} again")
            inputs[name] = found
        settings = Settings.model_validate(request["settings"])
        report = _report_to(request_path.with_name("progress.json"))
        carry_out(_stages(request["stages"])[draft.stage], draft, settings, store, inputs, report)
    except ParaclipError as error:
        log.exception("%s failed", draft.stage)
        answer = {"class": type(error).__name__, "text": with_notes(error)}
        request_path.with_name("answer.json").write_text(json.dumps(answer))
        return error.exit_code
    log.info("%s is done", draft.stage)
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
