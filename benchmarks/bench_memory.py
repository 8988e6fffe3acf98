"""Peak memory of ingest, plan, generation, cached generation and writing, and how it grows with the captions.

    python benchmarks/bench_memory.py --captions 250000,1000000

The real stages run over as many captions with an engine that takes no time, each phase in a process of its own. The
slope between the first and the last size says what ten million captions take; one size alone is only measured.
``--until plan`` ends after that phase.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from record import record

from paraclip_core.config import SamplingOptions, Settings
from paraclip_core.paraphrase.protocol import Completion, Prompt
from paraclip_core.settings import parse_settings
from storage.artifacts import ArtifactStore
from tasks.dag import STAGES
from tasks.planning import plan_run
from tasks.run import run_stage

BOUND_MIB = 2048
TARGET = 10_000_000
PHASES = ("ingest", "plan", "paraphrase_1", "cached", "plan of step 2", "paraphrase_2", "plan of nothing")


class Instant:
    """An engine that takes no time, under the name of one to which prompt and sampling matter."""

    name = "transformers"
    model = "instant-1"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Each text again, with a word in front."""
        return [Completion((f"well {prompt.text}",), 10, 5) for prompt in prompts]

    def close(self) -> None:
        """Nothing to free."""


def settings_of(folder: Path) -> Settings:
    """Both steps as published, one answer a request."""
    paraphrase = {
        "engine": "transformers",
        "model": "instant",
        "prompts": "paper",
        "gates": {"preset": "paper"},
        "sampling": {"n": 1},
        "chunk": 1024,
    }
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": {"root": str(folder / "root")}})


def write_captions(folder: Path, count: int) -> None:
    """Different captions, one a line."""
    with (folder / "captions.txt").open("w") as file:
        for n in range(count):
            file.write(f"photo {n} of a dog on the beach with {n % 97} balls\n")


def carry_out(phase: str, folder: Path) -> dict[str, Any]:
    """One phase in this process; what it did."""
    settings = settings_of(folder)
    store = ArtifactStore(settings.run.root)
    stages = {name: replace(stage, isolated=False) for name, stage in STAGES.items()}
    if phase.startswith("plan"):
        return {stage.stage: stage.requests for stage in plan_run(settings, store) if "paraphrase" in stage.stage}
    if phase == "cached":
        store.remove(store.list("paraphrase_1")[0])
    metrics = run_stage("paraphrase_1" if phase == "cached" else phase, settings, stages=stages).manifest.metrics
    return {name: metrics[name] for name in ("read", "accepted", "generated", "cached") if name in metrics}


def in_this_process(phase: str, folder: Path) -> None:
    """Print what a phase did, its seconds and its peak memory, as JSON."""
    began = time.perf_counter()
    with ExitStack() as patches:
        for module in ("tasks.stages.paraphrase", "tasks.requests", "tasks.rates"):
            patches.enter_context(patch(f"{module}.make_engine", lambda *_, **__: Instant()))
        did = carry_out(phase, folder)
    seconds = round(time.perf_counter() - began, 1)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"phase": phase, "seconds": seconds, "peak_mib": round(peak, 1), **did}))


def measured(count: int, phases: Sequence[str]) -> dict[str, float]:
    """Peak memory in MiB by phase, each in a process of its own."""
    peaks = {}
    with tempfile.TemporaryDirectory() as temporary:
        write_captions(Path(temporary), count)
        for phase in phases:
            command = [sys.executable, __file__, "--phase", phase, "--folder", temporary]
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            line = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            print(count, line, end="", flush=True)
            peaks[phase] = json.loads(line)["peak_mib"]
    return peaks


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", default="250000,1000000", help="one size, or two")
    parser.add_argument("--until", choices=PHASES, default=PHASES[-1])
    parser.add_argument("--phase", choices=PHASES, help="used by the processes that are started")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.phase:
        in_this_process(given.phase, given.folder)
        return
    sizes = [int(float(size)) for size in given.captions.split(",")]
    phases = PHASES[: PHASES.index(given.until) + 1]
    peaks = [measured(size, phases) for size in dict.fromkeys(sizes)]
    first, last = peaks[0], peaks[-1]
    for phase in phases if len(peaks) > 1 else ():
        slope = (last[phase] - first[phase]) / (sizes[-1] - sizes[0])
        at_target = last[phase] + slope * (TARGET - sizes[-1])
        figures = {"bytes_per_caption": round(slope * (1 << 20), 1), "mib_at_10m": round(at_target)}
        print(json.dumps({"phase": phase, **figures}))
    if phases != PHASES:
        return
    peak = max(last.values())
    record("paraphrase_memory", peak, "MiB", f"{BOUND_MIB} MiB, with {sizes[-1]:,} captions", BOUND_MIB / peak)


if __name__ == "__main__":
    main()
