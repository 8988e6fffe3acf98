"""How a training step's memory and time grow: with the batch, the length of its texts, the tower's width, processes.

    python benchmarks/bench_scaling.py memory    # peak of a whole process, with and without gradient caching
    python benchmarks/bench_scaling.py steps     # CPU time of a step, all cases in turns

`memory`: ViT-B-32 whole (image tower included) with random weights, AdamW with its state, bf16, three texts of about
15 tokens a row; every batch in a process of its own, whose peak resident memory is what the operating system says.
`steps`: text towers alone. Both print a table and draw it into `docs/` with matplotlib (`pip install matplotlib`).
Texts are made up: token ids as frequent as words are, lengths as captions have them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl  # pyright: ignore[reportMissingImports]
import numpy as np
import open_clip
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG  # pyright: ignore[reportMissingImports]
from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
from record import record

from paraclip_core.clip.model import ClipModel, freeze_image_tower, trained_parameters
from paraclip_core.clip.packed import Ragged
from paraclip_core.config import LossWeights
from paraclip_core.training.data import Batch, TrainingRows, make_batch
from paraclip_core.training.distributed import ALONE, Processes, joined
from paraclip_core.training.losses import Objective, named_pairs
from paraclip_core.training.memory import deterministic, keep_freed_memory
from paraclip_core.training.trainer import build_optimizer, clamp_scale

DOCS = Path(__file__).resolve().parent.parent / "docs"
KINDS = ("caption", "paraphrase_1", "paraphrase_2")
START, END = 49_406, 49_407
EVERYTHING = 1e6
"""GiB that any batch fits into: nothing is embedded twice."""
BOUND_GIB = 6.0


@dataclass(frozen=True)
class Case:
    """A step to measure."""

    sweep: str
    batch: int = 32
    length: int = 0
    """Tokens of every text; 0: as captions have them, about 15."""
    width: int = 512
    layers: int = 12
    cached: bool = False
    """Embed the texts twice, whether or not they fit into memory."""
    processes: int = 1
    threads: int = 1


class Bench:
    """A model with its optimizer, and steps of it."""

    def __init__(self, clip: ClipModel) -> None:
        """Prepare the optimizer."""
        freeze_image_tower(clip)
        clip.model.train()
        self.clip = clip
        self.parameters = trained_parameters(clip.model)
        self.optimizer = build_optimizer(self.clip.model, 0.1)

    def step(self, prepared: Batch, memory_gib: float, processes: Processes = ALONE) -> None:
        """Forward, backward, clipping, update."""
        self.optimizer.zero_grad(set_to_none=True)
        pairs = named_pairs(LossWeights())
        Objective(self.clip, pairs, "bf16", memory_gib, processes=processes).gradients(prepared)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        clamp_scale(self.clip.model.get_parameter("logit_scale"))


def texts(rng: np.random.Generator, count: int, length: int) -> Ragged:
    """Token lists, from start to end, with ids as unevenly frequent as words."""
    lengths = np.full(count, length) if length else np.clip(3 + rng.poisson(11.7, count), 4, 77)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.minimum(rng.zipf(1.3, offsets[-1]), START - 1).astype(np.uint16)
    values[offsets[:-1]], values[offsets[1:] - 1] = START, END
    return Ragged(values, offsets)


def made_up(batch: int, dim: int, length: int = 0) -> Batch:
    """A batch of rows, each with an image of its own."""
    rng = np.random.default_rng(0)
    rows = TrainingRows({kind: texts(rng, batch, length) for kind in KINDS}, np.arange(batch))
    features = rng.normal(size=(batch, dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return make_batch(rows, np.arange(batch), KINDS, features.astype(np.float16), np.arange(batch))


def whole_model() -> ClipModel:
    """ViT-B-32 with random weights."""
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    torch.manual_seed(0)
    return ClipModel(open_clip.create_model("ViT-B-32"), open_clip.get_model_config("ViT-B-32") or {}, {}, "ViT-B-32")


def text_model(width: int, layers: int) -> ClipModel:
    """A text tower as ViT-B-32 has it, of another size, with an image tower that weighs nothing."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49_408, "width": width, "heads": width // 64, "layers": layers}
    config: dict[str, Any] = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    return ClipModel(open_clip.CLIP(**config), config, {"size": [32, 32]}, f"{width}-{layers}")


def peak_of(case: Case) -> dict[str, float]:
    """Peak memory of this process after a step."""
    torch.set_num_threads(case.threads)
    keep_freed_memory()
    with deterministic():
        bench = Bench(whole_model())
        bench.step(made_up(8, 512), EVERYTHING)  # so that the optimizer has its state
        before = _peak_gib()
        prepared = made_up(case.batch, 512)
        began, used = time.perf_counter(), time.process_time()
        bench.step(prepared, 0.0 if case.cached else EVERYTHING)
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
    return {"gib": _peak_gib(), "small_gib": before, "seconds": seconds, "cpu_seconds": cpu}


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(options: argparse.Namespace) -> None:
    """Table and plot of peak memory by batch."""
    found: dict[bool, dict[int, dict[str, float]]] = {True: {}, False: {}}
    for cached, batches in ((True, options.cached), (False, options.plain)):
        for batch in batches:
            case = Case("memory", batch, cached=cached, threads=options.threads)
            result = found[cached][batch] = kept(options.keep, batch, cached) or measured(case)
            print(json.dumps({"batch": batch, "cached": cached, **result}), flush=True)
    print("| batch | peak with gradient caching | peak without | samples per CPU second, with | without |")
    print("|---|---|---|---|---|")
    for batch in sorted({*found[True], *found[False]}):
        results = [found[cached].get(batch) for cached in (True, False)]
        peaks = [f"{r['gib']:.2f} GiB" if r else "–" for r in results]
        rates = [f"{batch / r['cpu_seconds']:.1f}" if r else "–" for r in results]
        print(f"| {batch:,} | {' | '.join([*peaks, *rates])} |")
    curves = {
        "without gradient caching": [(batch, r["gib"]) for batch, r in sorted(found[False].items())],
        "with gradient caching": [(batch, r["gib"]) for batch, r in sorted(found[True].items())],
    }
    panel = Panel("rows in a batch (ViT-B-32, three texts each)", "peak memory of the process, GiB", curves, True)
    draw("scaling-memory", [panel], BOUND_GIB)
    largest = max(found[True])
    peak = found[True][largest]["gib"]
    record("train_memory", peak, f"GiB at batch {largest}", f"{BOUND_GIB:g} GiB", BOUND_GIB / peak)


def measured(case: Case) -> dict[str, float]:
    """A batch in a process of its own."""
    command = [sys.executable, __file__, "memory", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def kept(path: Path | None, batch: int, cached: bool) -> dict[str, float] | None:
    """What an earlier run printed of a batch."""
    lines = path.read_text().splitlines() if path is not None else []
    results = [json.loads(line) for line in lines if line.startswith('{"batch"')]
    return next((r for r in results if (r["batch"], r["cached"]) == (batch, cached)), None)


def step_cases(largest: int, widths: Sequence[int]) -> list[Case]:
    """What `steps` measures; the largest batch is the largest of its sweep."""
    batches, few = [largest // 2**n for n in (4, 3, 2, 1, 0)], largest // 8
    return [
        *(Case("batch", batch) for batch in batches),
        *(Case("batch, cached", batch, cached=True) for batch in batches),
        *(Case("length", few, length=length) for length in (8, 16, 32, 48, 77)),
        *(Case("width", few, width=width) for width in widths),
        *(Case("processes", largest // 2, processes=n, threads=threads) for n, threads in ((1, 1), (1, 2), (2, 1))),
    ]


def measure_steps(rounds: int, cases: Sequence[Case]) -> None:
    """As one of two processes: the first one measures all cases in turns, the second one joins where it is asked to."""
    keep_freed_memory()
    with joined(torch.device("cpu")) as both, deterministic():
        benches: dict[tuple[int, int], Bench] = {}
        batches: dict[tuple[int, int], Batch] = {}
        results: dict[Case, list[tuple[float, float]]] = {}
        for number in range(rounds + 1):
            for case in cases:
                both.any(False)  # wait for each other
                if case.processes == 1 and not both.first:
                    continue
                torch.set_num_threads(case.threads)
                bench = benches.setdefault((case.width, case.layers), _bench(benches, case))
                batch = batches.setdefault((case.batch, case.length), _batch(batches, case))
                began, used = time.perf_counter(), time.process_time()
                bench.step(batch, 0.0 if case.cached else EVERYTHING, both if case.processes == 2 else ALONE)
                cpu = torch.tensor(time.process_time() - used)
                cpu = float(both.sum(cpu)) if case.processes == 2 else float(cpu)
                if number:  # the first round warms up
                    results.setdefault(case, []).append((time.perf_counter() - began, cpu))
        both.any(False)
        if both.first:
            print(json.dumps([[asdict(case), times] for case, times in results.items()]))


def _bench(benches: dict[tuple[int, int], Bench], case: Case) -> Bench:
    key = (case.width, case.layers)
    return benches[key] if key in benches else Bench(text_model(*key))


def _batch(batches: dict[tuple[int, int], Batch], case: Case) -> Batch:
    key = (case.batch, case.length)
    return batches[key] if key in batches else made_up(case.batch, 512, case.length)


def steps(options: argparse.Namespace) -> None:
    """Table and plot of a step's CPU time."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, *sys.argv]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    found = {Case(**case): times for case, times in json.loads(lines[-1])}
    cpu = {case: statistics.median(time[1] for time in times) for case, times in found.items()}
    wall = {case: min(time[0] for time in times) for case, times in found.items()}
    print("| case | CPU s a step | samples per CPU second | best wall s |\n|---|---|---|---|")
    for case in found:
        name = f"{case.sweep}: batch {case.batch}, {case.length or 15} tokens, width {case.width}"
        name += f", {case.processes} × {case.threads} threads" if case.sweep == "processes" else ""
        print(f"| {name} | {cpu[case]:.2f} | {case.batch / cpu[case]:.1f} | {wall[case]:.2f} |")

    def curve(sweep: str, field: str) -> list[tuple[float, float]]:
        return [(getattr(case, field), cpu[case]) for case in found if case.sweep == sweep]

    few = options.largest // 8
    in_batches = {"plain": curve("batch", "batch"), "with gradient caching": curve("batch, cached", "batch")}
    draw(
        "scaling-steps",
        [
            Panel("rows in a batch", "CPU seconds a step", in_batches, True),
            Panel(f"tokens of each text (batch {few})", "CPU seconds a step", {"": curve("length", "length")}),
            Panel(f"width of the text tower (batch {few})", "CPU seconds a step", {"": curve("width", "width")}),
        ],
    )
    alone, threads, together = (case for case in found if case.sweep == "processes")
    cached = [cpu[c] for c in found if c.sweep == "batch, cached"]
    plain = [cpu[c] for c in found if c.sweep == "batch"]
    record(
        "step_cached_vs_plain",
        cached[-1],
        f"CPU s at batch {options.largest}",
        "everything kept",
        plain[-1] / cached[-1],
        0.75,
    )
    record("step_two_processes", cpu[together], "CPU s", "one process", cpu[alone] / cpu[together], 1.0)
    record("step_two_threads", cpu[threads], "CPU s", "one thread", cpu[alone] / cpu[threads], 1.0)


@dataclass(frozen=True)
class Panel:
    """A chart: labelled curves over one axis."""

    x_label: str
    y_label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False


def draw(name: str, panels: Sequence[Panel], bound: float | None = None) -> None:
    """Write `docs/<name>.svg`; equal figures give equal bytes."""
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9.0, "axes.grid": True}):
        figure = Figure(figsize=(4.6 * len(panels), 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for label, points in panel.curves.items():
                axes.plot([x for x, _ in points], [y for _, y in points], marker="o", ms=3.5, label=label)
            if bound is not None:
                axes.axhline(bound, linestyle=":", color="grey", label=f"{bound:g} GiB")
            if panel.logarithmic:
                axes.set_xscale("log", base=2)
                ticks = sorted({x for points in panel.curves.values() for x, _ in points})
                axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            if len(panel.curves) > 1:
                axes.legend(frameon=False)
        figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def sizes(text: str) -> list[int]:
    """``64,256`` as numbers."""
    return [int(size) for size in text.split(",") if size]


def main() -> None:
    """Measure and print a table and one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "steps"))
    parser.add_argument("--cached", type=sizes, default=[64, 256, 1024, 4096, 16_384], help="batches with caching")
    parser.add_argument("--plain", type=sizes, default=[64, 128, 256, 512], help="batches without")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--largest", type=int, default=256, help="batch of `steps`")
    parser.add_argument("--keep", type=Path, help="output of an earlier `memory`, whose batches are not done again")
    parser.add_argument("--widths", type=sizes, default=[128, 256, 384, 512, 768], help="towers of `steps`")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(peak_of(Case(**json.loads(options.case)))))
    elif options.what == "memory":
        memory(options)
    elif "RANK" in os.environ:
        measure_steps(options.rounds, step_cases(options.largest, options.widths))
    else:
        steps(options)


if __name__ == "__main__":
    main()
