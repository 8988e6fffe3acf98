"""Kill every stage at calls that change a file, and check that the next try ends with the same bytes.

    python benchmarks/kill_every_write.py [--kills 40] [--stages all_answered,finetune] [--seed 0] [--folder FOLDER]
                                          [--fault kill|error|full]

A small run of the whole DAG runs undisturbed. Then each stage starts again many times in a forked process, which a
preloaded library (`kill_at_write.c`, built with `cc`) kills at one of its opens, writes, renames, removals and flushes
below the root, whichever library makes the call; one in three is killed again while it resumes. The next try must
leave the artifact of the undisturbed run, no unfinished work except that of a stage killed when it was finished, and
no draft outside the cache, which sweeps its own after a day. `all_answered` is step 1 with a cache that has every
answer: its table is made, and everything is filtered and selected while nothing is asked.
The last line is JSON; the exit status is 1 if something differs.

With `--fault error`, the call fails as on a damaged disk; with `--fault full`, it and all later calls that take space
fail. The stage must still end well, or with an error for the user.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from record import arguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.errors import ParaclipError
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer
from tests.kit.tiny_run import served, tiny_run, written

SOURCE = Path(__file__).with_name("kill_at_write.c")
LIBRARY = "PARACLIP_KILL_LIBRARY"
AGAIN, CALLS_AGAIN = 0.33, 40
"""Share of the next tries that are killed, too, and within how many calls."""
FAULTS = ("kill", "error", "full")
"""In the order of the library's numbers."""
TOLD = 3
"""Exit status of a try that ended with an error for the user."""
PATIENCE_SECONDS = 120
DRAFT = ".*"
ANSWERED, STEP = "all_answered", "paraphrase_1"
"""Name of the stage that starts with a cache of every answer, and the stage itself."""
IMPORTED = (
    "open_clip",
    "duckdb",
    "scipy.stats",
    "paraclip.tasks.training.bodies",
)
"""What stages import when they start, and every try would import again. None of it starts a thread."""


@dataclass
class Figures:
    """Results of the tries of all stages."""

    calls: dict[str, int] = field(default_factory=dict)
    """Calls that change a file in each undisturbed stage."""
    kills: dict[str, int] = field(default_factory=dict)
    """Tries that were killed, or ended with an error."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every stage met faults and ended like the undisturbed one."""
        return bool(self.kills) and all(self.kills.values()) and not self.problems


def forked(work: Callable[[], object], log: Path) -> int:
    """Call `work` in a forked process whose output goes to `log`; returns its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.alarm(PATIENCE_SECONDS)
        work()
        status = 0
    except ParaclipError:
        traceback.print_exc()
        status = TOLD
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Killer:
    """The undisturbed run, and tries of its stages next to it."""

    def __init__(self, folder: Path, url: str, seed: int, fault: str) -> None:
        """Work in `folder`, with answers from the server at `url`."""
        self._fault = FAULTS.index(fault)
        self._folder, self._url, self._log = folder, url, folder / "log.txt"
        self._rng = random.Random(seed)
        self._library = ctypes.CDLL(os.environ[LIBRARY])
        self._library.arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
        self._library.counted.restype = ctypes.c_long
        self.figures = Figures()
        for name in IMPORTED:
            importlib.import_module(name)
        self.stages = tuple(stages_of(parse_settings(self._run("undisturbed"))))
        self.all = [*self.stages, ANSWERED]
        """What can be killed: the stages, and step 1 with a cache of every answer."""

    def undisturbed(self) -> None:
        """Execute the whole run and count each stage's calls."""
        for stage in self.all:
            told, root = self._folder / f"{stage}.calls", "undisturbed"
            if stage == ANSWERED:
                root = "disturbed"
                self._begin_anew(stage)
            self._undisturbed(partial(self._carry_out, root, stage, 0, told))
            self.figures.calls[stage] = int(told.read_text())

    def kill(self, stage: str, kills: int) -> None:
        """Let a stage meet the fault at `kills` different calls, or at each of them if it has fewer."""
        calls = self.figures.calls[stage]
        self.figures.kills[stage] = 0
        for call in sorted(self._rng.sample(range(1, calls + 1), min(kills, calls))):
            self._begin_anew(stage)
            self._log.write_text("")
            fatal = [call]
            if self._rng.random() < AGAIN:
                fatal.append(self._rng.randint(1, CALLS_AGAIN))
            tries = [forked(partial(self._carry_out, "disturbed", stage, number), self._log) for number in fatal]
            self.figures.kills[stage] += sum(status == self._usual for status in tries)
            status = forked(partial(self._carry_out, "disturbed", stage, 0), self._log)
            problem = self._problem(stage) if status == 0 else "it fails"
            if not {0, self._usual}.issuperset(tries):
                problem = f"it ends with {tries}"
            if problem:
                self.figures.problems.append(f"{stage}, fault at {fatal}: {problem}\n{self._log.read_text()[-2000:]}")

    @property
    def _usual(self) -> int:
        """The wait status of a try that the fault ends."""
        return TOLD << 8 if self._fault else signal.SIGKILL

    def _run(self, root: str) -> dict[str, Any]:
        return tiny_run(self._folder / root, served(self._url))

    def _carry_out(self, root: str, stage: str, fatal: int, told: Path | None = None) -> None:
        run = Run(parse_settings(self._run(root)), ArtifactStore(self._folder / root))
        node = run.node(_stage_of(stage))
        inputs = run.inputs(node)
        self._library.arm(str(run.store.root).encode(), fatal, self._fault)
        execute(node.stage, node.draft, run, inputs)
        if told is not None:
            told.write_text(str(self._library.counted()))

    def _begin_anew(self, stage: str) -> None:
        """Make a root that has only what the stage reads, without the answers that it asked for."""
        root, before = self._folder / "disturbed", self.stages[: self.stages.index(_stage_of(stage))]
        shutil.rmtree(root, ignore_errors=True)
        for name in before:
            shutil.copytree(self._folder / "undisturbed" / "artifacts" / name, root / "artifacts" / name)
        if stage == ANSWERED:
            shutil.copytree(self._folder / "undisturbed" / "cache" / "segments", root / "cache" / "segments")

    def _undisturbed(self, work: Callable[[], object]) -> None:
        if forked(work, self._log) != 0:
            raise SystemExit(f"it fails with nothing in its way:\n{self._log.read_text()[-2000:]}")

    def _problem(self, stage: str) -> str | None:
        """How the result differs from what the undisturbed run left."""
        root = self._folder / "disturbed"
        expected, artifacts = (self._artifacts(self._folder / name, stage) for name in ("undisturbed", "disturbed"))
        if len(artifacts) != 1 or artifacts[0].fingerprint != expected[0].fingerprint:
            return f"there are {[artifact.fingerprint for artifact in artifacts]}, not {expected[0].fingerprint}"
        there, wanted = artifacts[0].manifest.files, expected[0].manifest.files
        if there != wanted:
            return f"other bytes: {sorted(n for n in {*there, *wanted} if there.get(n) != wanted.get(n))}"
        if stage == ANSWERED and (asked := artifacts[0].manifest.metrics["generated"]):
            return f"{asked} requests were made, whose answers had been there"
        drafts = [path for path in root.rglob(DRAFT) if path.is_file() and root / "cache" not in path.parents]
        return f"drafts stay: {drafts}" if drafts else None

    def _artifacts(self, root: Path, stage: str) -> Sequence[Artifact]:
        return [artifact for artifact in ArtifactStore(root).list() if artifact.stage == _stage_of(stage)]


def _stage_of(name: str) -> str:
    return STEP if name == ANSWERED else name


def serve(pipe: int) -> None:
    """Send the parent the address, and answer until it ends."""
    server = OpenAIServer()
    server.answer = written
    os.write(pipe, server.url.encode())
    os.close(pipe)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)


def measure(folder: Path, stages: Sequence[str], kills: int, seed: int, fault: str) -> Figures:
    """Let the stages meet the fault in an empty folder; all of them if `stages` is empty."""
    began = time.monotonic()
    reader, writer = os.pipe()
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(writer)], pass_fds=[writer])
    os.close(writer)
    try:
        killer = Killer(folder, os.read(reader, 1000).decode(), seed, fault)
        killer.undisturbed()
        for stage in stages or killer.all:
            killer.kill(stage, kills)
    finally:
        server.kill()
        server.wait()
        os.close(reader)
    killer.figures.seconds = round(time.monotonic() - began, 1)
    return killer.figures


def preload(folder: Path) -> None:
    """Restart this process with the library in it. A fork must find no threads, and one each is enough."""
    library = folder / "kill_at_write.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), LIBRARY: str(library), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv, "--folder", str(folder)], environment)


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=40, help="calls of each stage at which the fault is met")
    parser.add_argument("--fault", choices=FAULTS, default="kill")
    parser.add_argument("--stages", default="", help="separated by commas; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in (a temporary one)")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return 0
    if LIBRARY not in os.environ:
        preload(given.folder or Path(tempfile.mkdtemp(prefix="paraclip-kills-")))
    stages = [name for name in given.stages.split(",") if name]
    try:
        figures = measure(given.folder, stages, given.kills, given.seed, given.fault)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)
    for problem in figures.problems:
        print(problem, file=sys.stderr)
    told = {**asdict(figures), "problems": len(figures.problems), "good": figures.good}
    print(json.dumps({"name": "kill_every_write", "fault": given.fault, **told}))
    return 0 if figures.good else 1


if __name__ == "__main__":
    sys.exit(main())
