"""Random SIGKILLs while captions are paraphrased: what is lost, and what is paid twice.

    python benchmarks/kill_paraphrasing.py --captions 20000 --kills 20 [--seed 0] [--chunk 256] [--folder FOLDER]

Both steps run twice through the engine `openai` against a server that counts: undisturbed, and with kills of the
stage's process (at any moment; the moment a segment of answers is there and the index does not know it; while the
index is written) and of the server. The last line is JSON; the exit status is 1 where bytes differ, an answer was
lost, or requests were made twice beyond one chunk a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))

from counting_server import CountingServer  # pyright: ignore[reportMissingImports]

from paraclip_core.config import Settings
from paraclip_core.errors import ParaclipError
from paraclip_core.settings import parse_settings
from storage.artifacts import ArtifactStore
from tasks.run import run_stage

STAGES = ("ingest", "paraphrase_1", "paraphrase_2")
WORKER, SERVER, SEGMENT, INDEX = "worker", "server", "segment", "index"


@dataclass
class Figures:
    """What a pair of runs came to."""

    captions: int
    kills: int
    """Kills that hit a process at work."""
    chunk: int
    kinds: dict[str, int] = field(default_factory=dict)
    same_bytes: bool = False
    """Whether every artifact's files have the sizes and hashes of the undisturbed run."""
    distinct: int = 0
    """Different requests, of the undisturbed run."""
    distinct_seen: int = 0
    """Different requests, of the disturbed one."""
    asked: int = 0
    """Requests that the server was sent in the disturbed run."""
    twice: int = 0
    """Those that it had been sent before."""
    most_twice: int = 0
    """The most between two starts of the worker."""
    kept_rows: int = 0
    kept_keys: int = 0
    """Rows and different keys of the disturbed run's generation cache."""
    unindexed: int = 0
    """Kills that left segments which the index did not know."""
    in_transaction: int = 0
    """Kills that left the index's log behind: it was being written."""
    restarts: int = 0
    undisturbed_seconds: float = 0.0
    disturbed_seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Nothing lost, nothing paid twice but for a chunk a kill."""
        return (
            self.same_bytes
            and self.distinct == self.distinct_seen == self.kept_rows == self.kept_keys
            and self.twice <= self.kills * self.chunk
        )


def write_captions(folder: Path, count: int) -> None:
    """Captions of which one in twenty comes twice, for another image."""
    kinds, places = ("dog", "cat", "horse", "bird", "boat"), ("beach", "street", "roof", "field")
    lines = ["caption\timage"]
    for n in range(count):
        m = n - 1 if n % 20 == 19 else n
        lines.append(f"a red {kinds[m % 5]} with number {m} on a {places[m % 4]}\t{n}.jpg")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")


def settings_of(folder: Path, root: str, url: str, chunk: int) -> Settings:
    """Both steps with the engine `openai`, and a second try where nothing was answered."""
    paraphrase = {
        "engine": "openai",
        "model": "counting",
        "prompts": "paper",
        "gates": {"preset": "paper"},
        "sampling": {"n": 1, "max_tokens": 5},
        "attempts": 2,
        "chunk": chunk,
        "openai": {
            "base_url": url,
            "api_key_env": "NO_KEY",
            "concurrency": min(16, max(1, chunk // 4)),
            "backoff_seconds": 0.05,
        },
    }
    data = {"root": str(folder), "sources": [{"path": "captions.tsv"}]}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": {"root": str(folder / root), "threads": 1}})


def run_stages(settings: Settings) -> list[dict[str, Any]]:
    """The names, sizes and hashes of every artifact's files."""
    made = [run_stage(name, settings) for name in STAGES]
    return [{"stage": a.stage, "fingerprint": a.fingerprint, "files": a.manifest.files} for a in made]


def kill_plan(kills: int, rng: random.Random) -> list[str]:
    """Kinds in any order; one between segment and index is followed by one while the index catches up."""
    units = [[WORKER], [SEGMENT, INDEX], [SERVER], [SEGMENT, INDEX]]
    chosen: list[list[str]] = []
    while sum(map(len, chosen)) < kills:
        chosen.append(units[len(chosen) % len(units)])
    rng.shuffle(chosen)
    return [kind for unit in chosen for kind in unit][:kills]


class Killer:
    """Runs the stages and kills what is at work, until all is done."""

    def __init__(self, settings: Settings, server: CountingServer, figures: Figures, rng: random.Random) -> None:
        self._settings, self._server, self._figures, self._rng = settings, server, figures, rng
        self._store = ArtifactStore(settings.run.root)
        self._segments = self._store.cache / "segments"
        self._pool = ThreadPoolExecutor(1)
        self._run: Future[list[dict[str, Any]]] | None = None
        self._dead: set[int] = set()
        self._before = (0, 0)

    def kill_all(self, plan: list[str], expected: int) -> list[dict[str, Any]]:
        """Carry out the kills, spread over the expected number of requests, and finish the run."""
        moments = sorted(self._rng.uniform(0.02, 0.9) * expected for kind in plan if kind != INDEX)
        for kind in plan:
            if kind != INDEX:
                moment = moments.pop(0)
                self._until(lambda moment=moment: self._server.asked >= moment)
            if self._running().done() and self._running().exception() is None:
                break
            if self._kill_server() if kind == SERVER else self._kill_worker(kind):
                self._figures.kills += 1
                self._figures.kinds[kind] = self._figures.kinds.get(kind, 0) + 1
        self._until(lambda: False)
        self._note_cost()
        return self._running().result()

    def _running(self) -> Future[list[dict[str, Any]]]:
        if self._run is None:
            self._note_cost()
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
                self._figures.restarts += 1
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

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._segments.iterdir()}
        except FileNotFoundError:
            return set()

    def _kill_worker(self, kind: str) -> bool:
        """Kill the stage's process at a moment of this kind; whether it was still at work."""
        self._until(lambda: self._worker() is not None)
        before, wal = self._names(), self._store.cache / "generations.duckdb.wal"
        if kind == SEGMENT:
            self._until(lambda: any(name.endswith(".parquet") for name in self._names() - before), 0.0005)
        elif kind == INDEX:
            self._until(wal.exists, 0.0002)
            time.sleep(self._rng.choice((0, 0, 0.001, 0.003)))
        pid = self._worker()
        if pid is None:
            return False
        in_transaction = wal.exists()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._dead.add(pid)
        with suppress(ParaclipError):
            self._running().result()
        if self._running().exception() is None:
            return False
        self._run = None
        self._figures.in_transaction += in_transaction
        self._figures.unindexed += self._behind() > 0
        return True

    def _kill_server(self) -> bool:
        self._server.kill()
        time.sleep(self._rng.uniform(0, 1))
        self._server.start()
        return True

    def _behind(self) -> int:
        """Segments that the index does not know, seen on a copy of it."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self._store.cache.glob("generations.duckdb*"):
                shutil.copy(path, folder)
            index = Path(folder) / "generations.duckdb"
            if not index.exists():
                return len(self._names())
            with duckdb.connect(index) as con:
                known = {name for (name,) in con.execute("SELECT name FROM segments").fetchall()}
        return len({name for name in self._names() if name.endswith(".parquet")} - known)

    def _note_cost(self) -> None:
        """What was sent twice since the last start of the worker."""
        counts = self._server.counts()
        asked, distinct = sum(counts.values()), len(counts)
        then_asked, then_distinct = self._before
        self._before = asked, distinct
        self._figures.most_twice = max(self._figures.most_twice, asked - then_asked - (distinct - then_distinct))


def kept(root: Path) -> tuple[int, int]:
    """Rows and different keys in a root's generation cache."""
    keys = pq.read_table(root / "cache" / "segments", columns=["key"]).column("key").to_pylist()
    return len(keys), len(set(keys))


def measure(folder: Path, captions: int, kills: int, seed: int = 0, chunk: int = 256) -> Figures:
    """Run both steps undisturbed and disturbed in an empty folder, and compare.

    Args:
        folder: holds captions, roots and logs of the servers afterwards.
        captions: how many.
        kills: how many; those that come too late are not counted.
        seed: of what is killed when.
        chunk: `paraphrase.chunk`.
    """
    figures, rng = Figures(captions, 0, chunk), random.Random(seed)
    write_captions(folder, captions)
    began = time.monotonic()
    server = CountingServer(folder / "undisturbed.log")
    try:
        expected = run_stages(settings_of(folder, "undisturbed", server.url, chunk))
    finally:
        server.kill()
    figures.undisturbed_seconds = round(time.monotonic() - began, 1)
    counts: Counter[str] = server.counts()
    if sum(counts.values()) != len(counts):
        raise SystemExit("the undisturbed run asked for something twice")
    figures.distinct = len(counts)

    began = time.monotonic()
    server = CountingServer(folder / "disturbed.log")
    try:
        settings = settings_of(folder, "disturbed", server.url, chunk)
        found = Killer(settings, server, figures, rng).kill_all(kill_plan(kills, rng), figures.distinct)
    finally:
        server.kill()
    figures.disturbed_seconds = round(time.monotonic() - began, 1)
    counts = server.counts()
    figures.same_bytes = found == expected
    figures.asked, figures.distinct_seen = sum(counts.values()), len(counts)
    figures.twice = figures.asked - figures.distinct_seen
    figures.kept_rows, figures.kept_keys = kept(folder / "disturbed")
    return figures


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in (a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, given.captions, given.kills, given.seed, given.chunk)
    print(json.dumps({"name": "kill_paraphrasing", **asdict(figures), "good": figures.good}))
    return 0 if figures.good else 1


if __name__ == "__main__":
    sys.exit(main())
