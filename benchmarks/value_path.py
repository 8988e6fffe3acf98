"""The way of one `--set` value through the files, from the command line to the engine.

    python benchmarks/value_path.py

A *stay* is an unbroken series of calls in one file that hold the value: as an argument, in an argument's options, or in
the object that the method belongs to. A *climb* is a step from a lower layer back to a higher one (flows, tasks,
paraclip_core and storage). The stage runs in this process, in which a child process would do the same.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from paraclip.flows.commands.common import settings_from
from paraclip.tasks.run.dag import STAGES, run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings

HOME = Path(__file__).resolve().parents[1]
LAYERS = {"flows": 0, "tasks": 1, "paraclip_core": 2, "storage": 2}
HOLDERS = {"Settings", "ParaphraseOptions", "SamplingOptions", "Run", "StageContext"}
OVERRIDE = "paraphrase.sampling.temperature=0.71"


class Asked(Exception):
    """The value has arrived."""


class Probe:
    """The engine at the end of the way."""

    name, model = "probe", "probe-1"

    def __init__(self, options: Any, context: Any) -> None:
        """Look at nothing."""
        from paraclip_core.paraphrase.engines import EngineFacts

        self.facts = EngineFacts(gates="off")

    def generate(self, prompts: Any, sampling: Any) -> Any:
        """Be asked."""
        assert sampling.temperature == 0.71
        sys.setprofile(None)
        raise Asked

    def close(self) -> None:
        """Nothing to close."""


def in_product(frame: FrameType) -> str | None:
    """The product's file that a call is in, from the top folder down; None for any other file."""
    # Modules of `paraclip` are links.
    path = Path(frame.f_code.co_filename).resolve()
    if not path.is_relative_to(HOME) or path.relative_to(HOME).parts[0] not in LAYERS:
        return None
    return str(path.relative_to(HOME))


class Trace:
    """Collects the files that hold the value, one entry a stay."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.stays: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Called by the interpreter at each call."""
        if event != "call" or (name := in_product(frame)) is None:
            return
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
        values = [frame.f_locals.get(name) for name in names]
        if any(_holds(value) for value in values) and self.stays[-1:] != [name]:
            self.stays.append(name)


def _holds(value: object) -> bool:
    if type(value).__name__ in HOLDERS:
        return True
    return any(type(part).__name__ in HOLDERS for part in getattr(value, "__dict__", {}).values())


def main() -> None:
    """Trace and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "captions.csv").write_text("image,caption\na.jpg,a red cup on a table\na.jpg,two dogs on a beach\n")
        (folder / "a.jpg").touch()
        (folder / "run.yaml").write_text(
            f"data: {{root: {folder}, sources: [{{path: captions.csv, images: .}}]}}\n"
            f"paraphrase: {{engine: '__main__:Probe'}}\nrun: {{root: {folder / 'root'}}}\n"
        )
        here = {name: replace(stage, isolated=False) for name, stage in STAGES.items()}
        run_stage("ingest", Run(settings_from(folder / "run.yaml", [OVERRIDE]), stages=here))
        trace = Trace()
        threading.setprofile(trace)
        sys.setprofile(trace)
        settings: Settings = settings_from(folder / "run.yaml", [OVERRIDE])
        try:
            run_stage("paraphrase_1", Run(settings, stages=here))
        except Asked:
            pass
        finally:
            sys.setprofile(None)
    layers = [LAYERS[stay.split("/")[0]] for stay in trace.stays]
    climbs = sum(later < earlier for earlier, later in pairwise(layers))
    counts = Counter(trace.stays)
    print(f"{len(trace.stays)} stays in {len(counts)} files, {climbs} climbs")
    for name, count in counts.most_common():
        print(f"{count:3} {name}")


if __name__ == "__main__":
    main()
