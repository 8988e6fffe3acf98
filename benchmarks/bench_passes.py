"""What the paraphrase stages cost over many captions: time, processor time and memory, pass by pass.

    python benchmarks/bench_passes.py [--captions 1e6,1e7] [--repeat 3] [--until PHASE]

The real stages run over as many captions as `--captions` says, with an engine that answers at once (`instant.py`) and
gates off, so that figures are the stages' own. Each phase has a process of its own:

- `half`: half of the captions are asked for (`paraphrase.fraction`), so that the cache is partly answered;
- `plan`: `paraclip plan` then; its target is 5 seconds for a million captions;
- `paraphrase_1`: asks for the others;
- `cached`: the same stage where every answer and verdict is cached; `--repeat` times, the median counts. Its targets
  are 200,000 captions a second and 2 GiB;
- `inserted`: the same after 100 captions were inserted in the middle of the source; it asks and judges exactly these;
- `paraphrase_2` and `planned`: step 2, and `paraclip plan` of a run that is finished.

With two sizes, `cached_pass_growth` compares what a caption costs; its target is at most 1.3 times as much.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instant import instant_run, stage_here, write_captions
from record import record

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.plan import plan_run
from paraclip.tasks.run.run import Run

PHASES = ("ingest", "half", "plan", "paraphrase_1", "cached", "ingest again", "inserted", "paraphrase_2", "planned")
INSERTED = 100
BOUND_MIB = 2048
RATE, GROWTH, PLAN_SECONDS = 200_000, 1.3, 5.0

Measured = dict[str, Any]
"""Seconds, CPU seconds, peak memory and counts of a phase."""


def carry_out(phase: str, folder: Path) -> dict[str, Any]:
    """One phase in this process; what it counted."""
    settings = instant_run(folder, fraction=0.5 if phase == "half" else 1.0)
    store = ArtifactStore(settings.run.root)
    if phase in ("plan", "planned"):
        return {
            stage.stage: stage.requests
            for stage in plan_run(Run(settings, store), check=lambda *_: []).stages
            if "paraphrase" in stage.stage
        }
    names = {"half": "paraphrase_1", "cached": "paraphrase_1", "inserted": "paraphrase_1", "ingest again": "ingest"}
    metrics = stage_here(names.get(phase, phase), settings).manifest.metrics
    return {name: metrics[name] for name in ("read", "captions", "generated", "judged", "accepted") if name in metrics}


def prepare(phase: str, folder: Path, captions: int) -> None:
    """What a phase needs to be there, or not to be there."""
    middle = captions // 2
    if phase == "ingest":
        write_captions(folder / "captions.txt", range(captions))
    elif phase == "ingest again":
        inserted = range(captions, captions + INSERTED)
        write_captions(folder / "captions.txt", [*range(middle), *inserted, *range(middle, captions)])
    elif phase == "cached":
        store = ArtifactStore(instant_run(folder).run.root)
        store.remove(store.list("paraphrase_1")[-1])


def check(phase: str, counts: dict[str, Any], captions: int) -> None:
    """See that a phase did what it is measured for."""
    expected = {
        "ingest": {"read": captions, "accepted": captions},
        "cached": {"captions": captions, "generated": 0, "judged": 0},
        "inserted": {"captions": captions + INSERTED, "generated": INSERTED, "judged": INSERTED},
        "planned": {"paraphrase_1": 0, "paraphrase_2": 0},
    }.get(phase, {})
    wrong = {name: counts.get(name) for name, value in expected.items() if counts.get(name) != value}
    if wrong:
        raise SystemExit(f"{phase}: {wrong}; expected {expected}")


def in_this_process(phase: str, folder: Path) -> None:
    """Print what a phase took and counted, as JSON."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    counts = carry_out(phase, folder)
    figures = {"seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(cpu_seconds() - cpu, 3)}
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"phase": phase, **figures, "peak_mib": round(peak, 1), **counts}))


def cpu_seconds() -> float:
    """Of this process, all threads, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(captions: int, phases: Sequence[str], repeat: int) -> dict[str, list[Measured]]:
    """Every phase, in order, each in a process of its own; the cached pass several times."""
    measured: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for phase in phases:
            for _ in range(repeat if phase == "cached" else 1):
                prepare(phase, folder, captions)
                line = _in_a_process(phase, folder)
                measured.setdefault(phase, []).append(line)
                print(json.dumps({"size": captions, **line}), flush=True)
                check(phase, line, captions)
    return measured


def _in_a_process(phase: str, folder: Path) -> Measured:
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def tell(captions: int, measured: dict[str, list[Measured]]) -> None:
    """Record what one size came to."""
    cached = [statistics.median(line[name] for line in measured["cached"]) for name in ("seconds", "cpu_seconds")]
    per_second = captions / cached[0]
    against = f"{RATE:,} captions/s, with {captions:,} cached; {captions / cached[1]:,.0f} captions/CPU s"
    record("cached_pass", per_second, "captions/s", against, per_second / RATE)
    resident = max(line["peak_mib"] for line in measured["cached"])
    record("cached_pass_memory", resident, "MiB", f"{BOUND_MIB} MiB, with {captions:,} cached", BOUND_MIB / resident)
    inserted, plan = measured["inserted"][0]["seconds"], measured["plan"][0]["seconds"]
    what = f"the cached pass of {captions:,}, {INSERTED} more in their middle"
    record("inserted_captions", inserted, "s", what, cached[0] / inserted)
    against = f"{PLAN_SECONDS:g} s, with {captions:,} captions, half of them answered"
    record("plan", plan, "s", against, PLAN_SECONDS / plan)
    peak = max(line["peak_mib"] for lines in measured.values() for line in lines)
    record("paraphrase_memory", peak, "MiB", f"{BOUND_MIB} MiB, with {captions:,} captions", BOUND_MIB / peak)


def tell_growth(sizes: Sequence[int], results: Sequence[dict[str, list[Measured]]]) -> None:
    """Record how much more a caption costs at the last size than at the first."""
    first, last = (
        statistics.median(line["seconds"] for line in measured["cached"]) / size
        for size, measured in zip((sizes[0], sizes[-1]), (results[0], results[-1]), strict=True)
    )
    against = f"{sizes[0]:,} captions instead of {sizes[-1]:,}, target 1 / {GROWTH}"
    record("cached_pass_growth", 1 / last, "captions/s", against, first / last)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", default="1e6", help="one size, or several with commas")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--until", choices=PHASES, default=PHASES[-1])
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.phase:
        in_this_process(chosen.phase, chosen.folder)
        return
    sizes = sorted(int(float(size)) for size in chosen.captions.split(","))
    phases = PHASES[: PHASES.index(chosen.until) + 1]
    results = []
    for size in sizes:
        results.append(measure(size, phases, chosen.repeat))
        if phases == PHASES:
            tell(size, results[-1])
    if len(sizes) > 1 and "cached" in phases:
        tell_growth(sizes, results)


if __name__ == "__main__":
    main()
