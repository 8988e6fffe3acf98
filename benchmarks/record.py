"""The one line that every benchmark prints last, and the file that keeps it."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def record(name: str, value: float, unit: str, against: str, ratio: float, bound: float | None = None) -> None:
    """Print a benchmark's result as one JSON line and append it to ``results/<host class>.jsonl``.

    Args:
        name: the benchmark's stable name.
        value: our figure, in `unit`.
        unit: for example rows/s.
        against: what it was compared with, in the same run.
        ratio: our figure over the other one's; above 1 is faster.
        bound: what the hardware or a formula allows, as the same ratio.
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


def wait_as_stages_do() -> None:
    """Start this process anew with OpenMP threads that sleep while they wait, as those of a stage's process do.

    Spinning ones take the cores from the other libraries of the process. OpenMP looks once, when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def data_folder(name: str) -> Path | None:
    """The folder `name` of the real data that PARACLIP_DATA points to, where it is there."""
    root = os.environ.get("PARACLIP_DATA")
    folder = Path(root).expanduser() / name if root else None
    return folder if folder is not None and folder.is_dir() else None
