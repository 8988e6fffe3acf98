"""Small stages for tests of the code around a stage. A child process imports this module by its name."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from paraclip.tasks.run import run
from paraclip.tasks.run.execute import make_artifact
from paraclip.tasks.run.run import Stage, StageContext
from paraclip_core.config import Settings
from paraclip_core.errors import InputError
from paraclip_core.options import meaning
from paraclip_core.progress import Progress


def _finish(context: StageContext) -> dict[str, Any]:
    for step in range(3):
        context.progress(step + 1, 3, loss=0.5 / (step + 1))
        time.sleep(0.03)
    texts = [artifact.path.joinpath("made.txt").read_text() for artifact in context.inputs.values()]
    (context.work.out / "made.txt").write_text("".join([*texts, "x"]))
    return {"rows": 3, "pid": os.getpid(), "prefect": "prefect" in sys.modules}


def _refuse(context: StageContext) -> dict[str, Any]:
    raise InputError("captions.csv row 7: expected a caption")


def _crash(context: StageContext) -> dict[str, Any]:
    raise ZeroDivisionError("the very reason")


def _killed(context: StageContext) -> dict[str, Any]:
    sys.stderr.write("about to be killed\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _hang(context: StageContext) -> dict[str, Any]:
    """Write its process id to the scratch folder, then hang; it ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (context.work.scratch / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)


def _talk(context: StageContext) -> dict[str, Any]:
    """Write more than a pipe holds, from a grandchild, too."""
    sys.stdout.write("x" * 300_000 + "\n")
    subprocess.run([sys.executable, "-c", "print('from the grandchild')"], check=True)
    (context.work.out / "made.txt").write_text("")
    return {}


def _fill(context: StageContext) -> dict[str, Any]:
    """Write half a megabyte, and report what an earlier try left in the scratch folder."""
    before = [path.name for path in context.work.scratch.iterdir()]
    (context.work.scratch / "first").touch()
    (context.work.out / "made.bin").write_bytes(bytes(500_000))
    return {"before": before}


def end_and_crash(request: Mapping[str, Any], progress: Progress) -> None:
    """End well, and crash while the process exits."""
    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)


def _stage(name: str, body: Any, inputs: tuple[str, ...] = (), isolated: bool = True) -> Stage:
    return Stage(
        name=name,
        version=1,
        inputs=lambda settings: inputs,
        options=lambda run: {"finetune": meaning(run.settings.finetune)} if name == "second" else {},
        body=body,
        isolated=isolated,
    )


STAGES = {
    "first": _stage("first", _finish),
    "second": _stage("second", _finish, ("first",)),
    "here": _stage("here", _finish, isolated=False),
}
TROUBLE = STAGES | {
    name: _stage(name, body)
    for name, body in {
        "refuse": _refuse,
        "crash": _crash,
        "killed": _killed,
        "hang": _hang,
        "talk": _talk,
        "fill": _fill,
    }.items()
}


MAKE = f"{__name__}:make_fake"
"""What a child process calls in place of `execute.MAKE`, so that it has these stages."""


def make_fake(request: Mapping[str, Any], progress: Progress) -> None:
    """Make an artifact of a stage of this module in the child process that was started for it."""
    run.stages_of = lambda settings: TROUBLE
    make_artifact(request, progress)


def settings_at(root: object, **changes: Any) -> Settings:
    """Default settings with this root."""
    return Settings.model_validate({"run": {"root": str(root)}, **changes})
