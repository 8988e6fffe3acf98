"""What benchmarks share: their arguments, sides that take turns, and the record that each prints last and appends."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help text is a script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def in_turns(
    sides: Mapping[str, Callable[[int], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: int = 0,
) -> dict[str, float]:
    """Median seconds of each side, called in turns with the number of the round; the first `warm` rounds are left out.

    `time.process_time` is the clock for cores that others use, too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm + rounds):
        for name, work in sides.items():
            started = clock()
            work(number)
            seconds[name].append(clock() - started)
    return {name: statistics.median(each[warm:]) for name, each in seconds.items()}


def record(name: str, value: float, unit: str, against: str, ratio: float, bound: float | None = None) -> None:
    """Print a benchmark's result as one JSON line and append it to ``results/<host class>.jsonl``.

    Args:
        name: the benchmark's stable name.
        value: our figure, in `unit`.
        unit: for example rows/s.
        against: what it was compared with in the same run.
        ratio: our figure over the other one's; above 1 is faster.
        bound: the best ratio that the hardware or a formula allows.
    """
    host = f"{platform.machine()}-{os.cpu_count()}cpu"
    line = json.dumps(
        {
            "name": name,
            "value": round(value, 3),
            "unit": unit,
            "against": against,
            "ratio": round(ratio, 3),
            "bound": None if bound is None else round(bound, 3),
            "device": host,
            "versions": {package: version(package) for package in ("torch", "open_clip_torch", "pyarrow", "duckdb")},
        }
    )
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{host}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)


def in_fresh_process(script: str, part: str, folder: Path, *sizes: object) -> dict[str, float]:
    """Run `script --part part --folder folder …` and return the JSON object that it prints last.

    A process inherits its parent's peak of memory, so a script that measures peaks must not use much itself.
    """
    command = [sys.executable, script, "--part", part, "--folder", str(folder), *map(str, sizes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(part, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
    return figures


def wait_as_stages_do() -> None:
    """Restart this process with OpenMP threads that sleep while they wait, as those of a stage's process do.

    Spinning ones take the cores from the other libraries of the process. OpenMP looks once, when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def data_folder(name: str) -> Path | None:
    """The folder `name` of the real data in PARACLIP_DATA, if it exists."""
    root = os.environ.get("PARACLIP_DATA")
    folder = Path(root).expanduser() / name if root else None
    return folder if folder is not None and folder.is_dir() else None
