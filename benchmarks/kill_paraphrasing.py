"""Random SIGKILLs while captions are paraphrased: what is lost, and what is paid twice.

    python benchmarks/kill_paraphrasing.py --captions 20000 --kills 24 [--seed 0] [--chunk 256] [--folder FOLDER]

Both steps run twice through the engine `openai` against a server that counts: undisturbed, and with kills. The
disturbed run begins with a cache that has some of the answers. What is killed:

- `worker`: the stage's process, at any moment;
- `part`: the same, the moment that a part of answers exists and the table does not know it;
- `table`: the same, while the tables catch up with the parts;
- `filter_results`: the same, the moment that a part of filter results exists;
- `filter`: one of the processes that filter;
- `select`: the stage's process, while rows are chosen and written;
- `server`: the server.

The last line is JSON; the exit status is 1 if bytes differ, an answer was lost, or more than one chunk of requests per
kill was made twice.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from record import arguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import ParaclipError
from paraclip_core.settings import parse_settings
from tests.kit.counting_server import CountingServer

STAGES = ("ingest", "paraphrase_1", "paraphrase_2")
ANY_MOMENT = [["worker"], ["part", "table"], ["server"], ["filter_results"], ["part", "table"]]
"""Kinds that wait for a share of the requests; a table that is behind catches up when the stage starts again."""
BEGINNING = ("table", "filter")
"""Kinds that are killed first, as soon as they exist."""
CARRIED = 3
"""One part in this many of step 1's is in the cache from the start."""
REQUESTS_PER_MINUTE = 12_000
"""Slow enough for kills to come in time."""


@dataclass
class Figures:
    """Results of a pair of runs."""

    captions: int
    kills: int
    """Kills that hit a process at work."""
    chunk: int
    kinds: dict[str, int] = field(default_factory=dict)
    same_bytes: bool = False
    """Whether every artifact's files have the sizes and hashes of the undisturbed run."""
    distinct: int = 0
    """Distinct requests of the undisturbed run."""
    carried: int = 0
    """Requests whose answers the cache has from the start."""
    distinct_seen: int = 0
    """Distinct requests of the disturbed run."""
    asked: int = 0
    """Requests that the server received in the disturbed run."""
    twice: int = 0
    """Requests that it had received before."""
    cached_rows: int = 0
    cached_keys: int = 0
    """Rows and distinct keys of the disturbed run's answers cache."""
    parts_ahead: int = 0
    """Kills that left parts which their table did not know."""

    @property
    def good(self) -> bool:
        """Whether nothing was lost, and nothing was paid twice except one chunk per kill."""
        return (
            self.same_bytes
            and self.distinct == self.carried + self.distinct_seen == self.cached_rows == self.cached_keys
            and self.twice <= self.kills * self.chunk
        )


def write_captions(folder: Path, count: int) -> None:
    """Write captions of which one in twenty occurs twice, for another image."""
    kinds, places = ("dog", "cat", "horse", "bird", "boat"), ("beach", "street", "roof", "field")
    lines = ["caption\timage"]
    for n in range(count):
        m = n - 1 if n % 20 == 19 else n
        lines.append(f"a red {kinds[m % 5]} with number {m} on a {places[m % 4]}\t{n}.jpg")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")


def settings_of(folder: Path, root: str, url: str, chunk: int) -> Settings:
    """Both steps with the engine `openai`, and a second try if nothing was answered."""
    paraphrase = {
        "engine": "openai",
        "model": "counting",
        "prompts": "paper",
        "filters": {"preset": "off"},
        "sampling": {"n": 1, "max_tokens": 5},
        "attempts": 2,
        "chunk": chunk,
        "openai": {
            "base_url": url,
            "api_key_env": "NO_KEY",
            "concurrency": min(16, max(1, chunk // 4)),
            "requests_per_minute": REQUESTS_PER_MINUTE,
        },
    }
    data = {"root": str(folder), "sources": [{"path": "captions.tsv"}]}
    run = {"root": str(folder / root), "threads": 2}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": run})


def run_stages(settings: Settings) -> list[dict[str, Any]]:
    """The names, sizes and hashes of every artifact's files."""
    made = [run_stage(name, Run(settings)) for name in STAGES]
    return [{"stage": a.stage, "fingerprint": a.fingerprint, "files": a.manifest.files} for a in made]


def kill_plan(kills: int, rng: random.Random) -> list[tuple[str, float]]:
    """Kinds of kills in their order, each with the share of the requests that must have been made before it.

    Kinds that need the beginning or the end of a step come there; half of the others come in each step.
    """
    units = [ANY_MOMENT[n % len(ANY_MOMENT)] for n in range(kills)]
    while sum(map(len, units)) > max(kills - len(BEGINNING) - 2, 0):
        units.pop()
    rng.shuffle(units)
    middle = len(units) // 2
    plan = [(kind, 0.0) for kind in BEGINNING]
    for some, first, last in ((units[:middle], 0.02, 0.4), (units[middle:], 0.5, 0.85)):
        shares = sorted(rng.uniform(first, last) for _ in some)
        plan += [(kind, share) for unit, share in zip(some, shares, strict=True) for kind in unit]
        plan.append(("select", 0.0))
    return plan[:kills]


class Killer:
    """Runs the stages and kills what is running, until everything is done."""

    def __init__(self, settings: Settings, server: CountingServer, figures: Figures, rng: random.Random) -> None:
        self._settings, self._server, self._figures, self._rng = settings, server, figures, rng
        self._store = ArtifactStore(settings.run.root)
        self._cache = self._store.cache
        self._pool = ThreadPoolExecutor(1)
        self._run: Future[list[dict[str, Any]]] | None = None
        self._dead: set[int] = set()

    def kill_all(self, plan: list[tuple[str, float]], expected: int) -> list[dict[str, Any]]:
        """Do the kills, each of which waits for its share of the expected requests, and finish the run."""
        for kind, share in plan:
            self._until(lambda share=share: self._server.asked >= share * expected)
            if self._running().done() and self._running().exception() is None:
                break
            if self._kill(kind):
                self._figures.kills += 1
                self._figures.kinds[kind] = self._figures.kinds.get(kind, 0) + 1
        self._until(lambda: False)
        return self._running().result()

    def _kill(self, kind: str) -> bool:
        """One kill at a moment of its kind; returns whether it hit something that was running."""
        if kind == "server":
            self._server.kill()
            time.sleep(self._rng.uniform(0, 1))
            self._server.start()
            return True
        self._until(lambda: self._worker() is not None)
        parts, filter_results = self._names("segments"), self._names("filter_results")
        its_moment: Callable[[], bool] = {
            "worker": lambda: True,
            "part": lambda: any(name.endswith(".parquet") for name in self._names("segments") - parts),
            "filter_results": lambda: any(
                name.endswith(".parquet") for name in self._names("filter_results") - filter_results
            ),
            "table": (self._cache / "answers.duckdb.wal").exists,
            "filter": lambda: bool(self._filters()),
            "select": lambda: any(self._store.root.glob("work/*/*/tables/*/chosen.parquet")),
        }[kind]
        self._until(its_moment, 0.0003)
        if kind in ("table", "filter", "select"):
            time.sleep(self._rng.choice((0, 0, 0.001, 0.003, 0.01)))
        worker = self._worker()
        victim = next(iter(self._filters()), None) if kind == "filter" else worker
        return worker is not None and victim is not None and self._end(worker, victim)

    def _end(self, worker: int, victim: int) -> bool:
        """Kill a process; returns whether that ended the stage."""
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        with suppress(ParaclipError):
            self._running().result()
        self._dead.add(worker)
        if self._running().exception() is None:
            return False
        self._run = None
        self._figures.parts_ahead += self._parts_ahead() > 0
        return True

    def _running(self) -> Future[list[dict[str, Any]]]:
        if self._run is None:
            self._run = self._pool.submit(run_stages, self._settings)
        return self._run

    def _until(self, true: Callable[[], bool], pause: float = 0.002) -> None:
        """Wait until something is true or the run is done; one that failed is started again, as a retry would."""
        while True:
            run = self._running()
            if run.done():
                if run.exception() is None:
                    return
                if not isinstance(run.exception(), ParaclipError):
                    run.result()
                self._run = None
            if true():
                return
            time.sleep(pause)

    def _worker(self) -> int | None:
        """The stage's process, as its lock says."""
        for path in (self._store.root / "work").glob("*/*.lock"):
            with suppress(OSError, ValueError):
                pid = int(json.loads(path.read_text())["pid"])
                if pid not in self._dead and pid != os.getpid():
                    return pid
        return None

    def _filters(self) -> list[int]:
        """The processes that filter: spawned by the worker, in addition to the one that tracks resources."""
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self._worker() and b"spawn_main" in (path / "cmdline").read_bytes():
                    pids.append(int(path.name))
        return pids

    def _names(self, folder: str) -> set[str]:
        try:
            return {path.name for path in (self._cache / folder).iterdir()}
        except FileNotFoundError:
            return set()

    def _parts_ahead(self) -> int:
        """Parts that their table does not know, seen on a copy of it."""
        parts = {name for folder in ("segments", "filter_results") for name in self._names(folder)}
        indexed: set[str] = set()
        with tempfile.TemporaryDirectory() as folder:
            for path in self._cache.glob("answers.duckdb*"):
                shutil.copy(path, folder)
            # There is none, or no such table, while it is rebuilt.
            with suppress(duckdb.Error), duckdb.connect(Path(folder) / "answers.duckdb") as con:
                names = "SELECT name FROM generations_parts UNION ALL SELECT name FROM filter_results_parts"
                indexed = {name for (name,) in con.execute(names).fetchall()}
        return len({name for name in parts if name.endswith(".parquet")} - indexed)


def cached(root: Path) -> tuple[int, int]:
    """Rows and distinct keys in a root's answers cache."""
    keys = pq.read_table(root / "cache" / "segments", columns=["key"]).column("key").to_pylist()
    return len(keys), len(set(keys))


def undisturbed(folder: Path, chunk: int, figures: Figures) -> list[dict[str, Any]]:
    """The artifacts of an undisturbed run."""
    server = CountingServer(folder / "undisturbed.log")
    try:
        artifacts = run_stages(settings_of(folder, "undisturbed", server.url, chunk))
    finally:
        server.kill()
    counts = server.counts()
    if sum(counts.values()) != len(counts):
        raise SystemExit("the undisturbed run asked for something twice")
    figures.distinct = len(counts)
    return artifacts


def measure(folder: Path, captions: int, kills: int, seed: int = 0, chunk: int = 256) -> Figures:
    """Run both steps undisturbed and disturbed in an empty folder, and compare; late kills do not count."""
    figures, rng = Figures(captions, 0, chunk), random.Random(seed)
    write_captions(folder, captions)
    expected = undisturbed(folder, chunk, figures)
    parts = sorted((folder / "undisturbed" / "cache" / "segments").glob("*.parquet"))
    (folder / "disturbed" / "cache" / "segments").mkdir(parents=True)
    for part in parts[: len(parts) // 2 : CARRIED]:
        shutil.copy(part, folder / "disturbed" / "cache" / "segments")
    figures.carried = cached(folder / "disturbed")[0]

    server = CountingServer(folder / "disturbed.log")
    try:
        killer = Killer(settings_of(folder, "disturbed", server.url, chunk), server, figures, rng)
        artifacts = killer.kill_all(kill_plan(kills, rng), figures.distinct - figures.carried)
    finally:
        server.kill()
    counts = server.counts()
    figures.same_bytes = artifacts == expected
    figures.asked, figures.distinct_seen = sum(counts.values()), len(counts)
    figures.twice = figures.asked - figures.distinct_seen
    figures.cached_rows, figures.cached_keys = cached(folder / "disturbed")
    return figures


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in (a temporary one)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, chosen.captions, chosen.kills, chosen.seed, chosen.chunk)
    print(json.dumps({"name": "kill_paraphrasing", **asdict(figures), "good": figures.good}))
    return 0 if figures.good else 1


if __name__ == "__main__":
    sys.exit(main())
