"""A GPU's first ten minutes: whether the arithmetic is right on this device, and how fast it is.

    python benchmarks/gpu_acceptance.py [--only encoder speed …] [--json FILE]

Prints a table and writes it as JSON. The exit code is 1 if a figure is beyond its bar.

=========== ============================================================================================
encoder       text embeddings of the packed encoder against open_clip's own, padded to 77 tokens, in fp32
losses      loss and gradients of a step against the same, with open_clip's ``ClipLoss``
features    stored image features against ``encode_image``; images a second, from JPEG files
resume      a run killed by SIGKILL and resumed against one that was not: loss and gradient norm of each step
speed       samples/s against open_clip's locked loop and the padded text loop, share of the matmul rate (bf16)
=========== ============================================================================================

Weights are random, captions and images generated: nothing is downloaded or read. In addition to this repository, it
needs torch, open_clip and transformers with their dependencies, pydantic and pyarrow; neither Prefect nor DuckDB. On
CUDA the shapes are ViT-B-32's, on a CPU those of a small model.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_train import PAIRS, Bench, measure, set_up
from record import RESULTS, arguments
from torch import Tensor

from paraclip_core.clip.encode import Precision, encode_ragged
from paraclip_core.clip.featurize import Featurizer, ImageFile
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import pick_device
from paraclip_core.clip.ragged import Ragged
from paraclip_core.training.options import TrainingOptions
from paraclip_core.training.process import configure_kernels, keep_freed_memory
from paraclip_core.training.trainer import TrainingJob, train

SMALL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}
BATCHES = {"small": 32, "ViT-B-32": 256}
STEPS, CHECKPOINT_STEPS, KILL_AFTER = 12, 4, 6
"""Steps of the runs of `resume`, and between checkpoints; a run is killed when its log has `KILL_AFTER` steps."""
PADDED_ROWS = 64
"""Texts per batch of the padded encoder in `encoder`, whose memory is that of all 77 tokens."""


@dataclass(frozen=True)
class Row:
    """A figure, and the bar that it must stay below."""

    check: str
    figure: str
    value: float
    unit: str = ""
    bar: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it is within its bar; NaN is not."""
        return self.bar is None or self.value <= self.bar


@dataclass(frozen=True)
class Machine:
    """The device, and the size of the model."""

    device: torch.device
    size: str

    @property
    def clock(self) -> Callable[[], float]:
        """Processor time on a CPU, because others may use its cores, too."""
        return time.process_time if self.device.type == "cpu" else time.perf_counter

    def bench(self, batch: int) -> Bench:
        """The model with its rows, the same in every process."""
        return set_up(batch, self.device, self.size, SMALL if self.size == "small" else None)[0]


def check_encoder(machine: Machine) -> Iterator[Row]:
    """Embeddings of the packed encoder in both precisions."""
    bench = machine.bench(BATCHES[machine.size])
    texts = bench.batch_of(0).tokens
    with torch.inference_mode():
        expected = _padded_embeddings(bench, texts, "fp32")
        own_error = float((_padded_embeddings(bench, texts, "bf16") - expected).abs().max())
        bars: dict[Precision, float] = {"fp32": 1e-5, "bf16": 1e-2}
        for precision, bar in bars.items():
            error = (encode_ragged(bench.clip, texts, precision=precision) - expected).abs().max()
            yield Row("encoder", f"packed {precision} - padded fp32, largest", float(error), bar=bar)
    yield Row("encoder", "padded bf16 - padded fp32, largest (open_clip's own)", own_error)


def _padded_embeddings(bench: Bench, texts: Ragged, precision: str) -> Tensor:
    tokens = torch.from_numpy(texts.padded(bench.clip.context_length)).to(bench.clip.device)
    with torch.autocast(bench.clip.device.type, torch.bfloat16, enabled=precision == "bf16"):
        parts = [bench.model.encode_text(part, normalize=True) for part in tokens.split(PADDED_ROWS)]
    return torch.cat(parts).float()


def check_losses(machine: Machine) -> Iterator[Row]:
    """Loss and gradients of a step in both precisions."""
    bench = machine.bench(min(BATCHES[machine.size], PADDED_ROWS))
    expected_loss, expected = _step(bench, bench.padded, "fp32")
    for precision, loss_bar, bar in (("fp32", 1e-5, 1e-4), ("bf16", 1e-2, 5e-2)):
        loss, gradient = _step(bench, bench.ours, precision)
        yield Row("losses", f"loss, {precision}, relative difference", abs(loss / expected_loss - 1), bar=loss_bar)
        error = float((gradient - expected).norm() / expected.norm())
        yield Row("losses", f"gradients, {precision}, norm of the difference over the norm", error, bar=bar)


def _step(bench: Bench, side: Callable[[int, str], Tensor], precision: str) -> tuple[float, Tensor]:
    """Loss and all gradients in a row, without an update."""
    bench.optimizer.zero_grad(set_to_none=True)
    loss = float(side(0, precision))
    gradients = [parameter.grad for parameter in bench.parameters.values() if parameter.grad is not None]
    return loss, torch.cat([gradient.double().flatten() for gradient in gradients])


def check_features(machine: Machine) -> Iterator[Row]:
    """Image features from files."""
    bench = machine.bench(BATCHES[machine.size])
    with tempfile.TemporaryDirectory() as folder:
        files = [ImageFile(str(number), f"{number}.jpg", folder) for number in range(len(bench.images))]
        for file, data in zip(files, bench.images, strict=True):
            (Path(folder) / file.name).write_bytes(data)
        with Featurizer(bench.clip, ImageArchive, 64) as featurizer:
            featurizer.encode(files[:64])
            start = time.perf_counter()
            features = featurizer.encode(files).features
            seconds = time.perf_counter() - start
        with torch.inference_mode():
            images = [bench.transform(ImageArchive(folder).open(file.name)) for file in files[:64]]
            expected = bench.model.encode_image(torch.stack(images).to(machine.device), normalize=True).cpu()
    error = np.abs(features[:64].astype(np.float32) - expected.numpy()).max()
    yield Row("features", "stored fp16 - encode_image, largest", float(error), bar=2e-3)
    yield Row("features", "from JPEG files of 128 by 128", len(files) / seconds, "images/s")


def check_resume(machine: Machine) -> Iterator[Row]:
    """A killed run against an undisturbed one; their logs must be equal to the last digit."""
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        train(_job(whole, machine, "bf16"))
        child = _child(killed, machine, "bf16")
        while child.poll() is None and len(_curve(killed)) < KILL_AFTER:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        was_killed = child.wait() == -signal.SIGKILL
        checkpoints = len(list(killed.glob("scratch/step-*.safetensors")))
        if code := _child(killed, machine, "bf16").wait():
            raise SystemExit(f"the resumed training ended with {code}; its message is above")
        yield Row("resume", "kills without a checkpoint to go on from", float(not (was_killed and checkpoints)), bar=0)
        yield Row("resume", "steps whose loss or gradient norm differs", _differing(whole, killed), bar=0)


def _job(folder: Path, machine: Machine, precision: str) -> TrainingJob:
    """A short run of a small model that memorizes its rows; the log is in `folder`."""
    bench = machine.bench(32)
    rows = len(bench.rows)
    options = {"epochs": STEPS * 32 / rows, "batch_size": 32, "learning_rate": 1e-3, "precision": precision}
    return TrainingJob(
        bench.clip,
        bench.rows,
        bench.pictures,
        PAIRS,
        TrainingOptions.model_validate(options | {"checkpoint_steps": CHECKPOINT_STEPS}),
        scratch=folder / "scratch",
        log_path=folder / "log.jsonl",
    )


def _child(folder: Path, machine: Machine, precision: str) -> subprocess.Popen:
    arguments = ["--train", str(folder), "--device", str(machine.device), "--size", machine.size]
    command = [sys.executable, __file__, *arguments, "--precision", precision]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _curve(folder: Path) -> list[list[float]]:
    """Loss and gradient norm of each step whose line is complete."""
    log = folder / "log.jsonl"
    text = log.read_text() if log.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [[line["loss"], line["gradient_norm"]] for line in lines]


def _differing(whole: Path, killed: Path) -> float:
    curves = _curve(whole), _curve(killed)
    if {len(curve) for curve in curves} != {STEPS}:
        return float("nan")
    return float(sum(a != b for a, b in zip(*curves, strict=True)))


def measure_speed(machine: Machine) -> Iterator[Row]:
    """Samples per second of all sides, in bf16."""
    bench = machine.bench(BATCHES[machine.size])
    bench.clock = machine.clock
    for other, name in (("open_clip", "open_clip's locked loop"), ("padded", "texts padded to 77")):
        ours, matmuls, theirs = measure(bench, other, "bf16", rounds=3)
        yield Row("speed", f"ours, in turns with {name}", bench.batch / ours, "samples/s")
        yield Row("speed", name, bench.batch / theirs, "samples/s")
        yield Row("speed", f"ours over {name}", theirs / ours, "times")
        yield Row("speed", f"share of the matmul rate, in turns with {name}", 100 * matmuls / ours, "%")


CHECKS: dict[str, Callable[[Machine], Iterator[Row]]] = {
    "encoder": check_encoder,
    "losses": check_losses,
    "features": check_features,
    "resume": check_resume,
    "speed": measure_speed,
}


def _line(row: Row) -> str:
    bar = "" if row.bar is None else f"<= {row.bar:g}"
    result = "" if row.bar is None else "ok" if row.passed else "FAILED"
    return f"{row.check:<10} {row.figure:<76} {row.value:>10.4g} {row.unit:<9} {bar:<9} {result}"


def run(machine: Machine, names: list[str], path: Path) -> int:
    """Run the checks, print and write their rows; returns 1 if one is beyond its bar."""
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else platform.processor()
    print(f"{name or platform.machine()}, torch {torch.__version__}, {machine.size}", flush=True)
    rows: list[Row] = []
    for check in names:
        for row in CHECKS[check](machine):
            rows.append(row)
            print(_line(row), flush=True)
    failed = [row for row in rows if not row.passed]
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"device": name, "type": machine.device.type, "size": machine.size, "torch": torch.__version__}
    table = [asdict(row) | {"passed": row.passed} for row in rows]
    path.write_text(json.dumps({**facts, "passed": not failed, "rows": table}, indent=1) + "\n")
    print(f"{len(failed)} of {sum(row.bar is not None for row in rows)} figures are beyond their bars; see {path}")
    return int(bool(failed))


def main() -> int:
    """Parse the arguments; `--train` is for child processes."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=("auto", *BATCHES), default="auto")
    parser.add_argument("--only", choices=CHECKS, nargs="+", default=list(CHECKS))
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu_acceptance.json")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    options = parser.parse_args()
    configure_kernels()
    keep_freed_memory()
    device = pick_device(options.device)
    sizes = {"cuda": "ViT-B-32"}
    machine = Machine(device, sizes.get(device.type, "small") if options.size == "auto" else options.size)
    if options.train is not None:
        train(_job(options.train, machine, options.precision))
        return 0
    return run(machine, options.only, options.json)


if __name__ == "__main__":
    sys.exit(main())
