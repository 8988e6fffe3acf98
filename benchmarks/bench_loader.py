"""Loading training rows at scale: what opening them costs, how much stays in memory, and how long a step waits.

Makes rows (three texts of about 15 tokens each, and an image with a feature of `--dim` numbers) as the stages write
them: Parquet tables, an index and feature shards. Then it measures, each in its own process:

* `loader_first_batch`: from opening what an earlier try spooled to the first shuffled batch; against the same through a
  list of Python rows.
* `loader_spool`: the rows' way from the Parquet tables into flat files, lookups of their images included.
* `loader_wait`: share of a step that waits for data, with the built-in base's text encoder as the step.

Each prints its peak of resident memory too, mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
from record import arguments, in_fresh_process, record

from paraclip.storage.features import write_index, write_shard
from paraclip_core.clip.model import ClipModel
from paraclip_core.tables import FEATURE_INDEX

KINDS = ("caption", "paraphrase_1", "paraphrase_2")
SHARD = 65_536
COMMON_WORDS = "a the man woman dog child in on with red blue water grass street two running playing black"
PART = 100_000


def make(folder: Path, rows: int, dim: int) -> None:
    """Write the tables and features of `rows` rows, each with its own image."""
    noise = np.random.default_rng(0)
    block = noise.normal(size=(SHARD, dim))
    block = (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)
    tables = []
    for shard, start in enumerate(range(0, rows, SHARD)):
        n = min(SHARD, rows - start)
        write_shard(folder / "features", shard, np.roll(block[:n], shard, axis=1))
        numbers = np.arange(start, start + n)
        pixels = [value.tobytes() for value in noise.integers(0, 2**63, (n, 2))]
        columns: dict[str, Any] = {"image_id": _ids(numbers), "shard": np.full(n, shard), "row": np.arange(n)}
        tables.append(pa.table({**columns, "pixels": pixels}).cast(FEATURE_INDEX))
    write_index(folder / "features", tables)
    for part, start in enumerate(range(0, rows, PART)):
        n = min(PART, rows - start)
        table: dict[str, Any] = {kind: _texts(noise, n) for kind in KINDS}
        table["image_id"] = _ids(noise.permutation(np.arange(start, start + n)))
        table["split"] = ["train"] * n
        table["caption_id"] = pa.array([value.tobytes() for value in noise.integers(0, 2**63, (n, 2))], pa.binary(16))
        (folder / "paraphrases").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), folder / f"paraphrases/part-{part:05d}.parquet", compression="zstd")


def _ids(numbers: np.ndarray) -> list[str]:
    return [f"http://example.org/images/{number:09d}.jpg" for number in numbers]


def _texts(noise: np.random.Generator, n: int) -> list[str]:
    """Texts of 6 to 20 words."""
    ends = np.cumsum(noise.integers(6, 21, n))
    words = np.array(re.findall(r"\w+", COMMON_WORDS))[noise.integers(0, 18, ends[-1])]
    return [" ".join(text.tolist()) for text in np.split(words, ends[:-1])]


def _clip() -> ClipModel:
    config: dict[str, Any] = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    return ClipModel(open_clip.CLIP(**config), config, {"size": [32, 32]}, "small")


def spool(folder: Path) -> dict[str, float]:
    """Spool rows from Parquet to flat files."""
    from paraclip.tasks.training.data import Images, hold_out, paraphrase_rows
    from paraclip_core.training.data import spool_rows

    began = time.perf_counter()
    images = Images(folder / "features")
    held_out = hold_out(folder / "paraphrases", images, 0.01)
    stream = paraphrase_rows(folder / "paraphrases", images, _clip(), keep=held_out.trains)
    rows = spool_rows(folder / "rows", KINDS, stream)
    seconds = time.perf_counter() - began
    return {"rows": len(rows), "seconds": seconds, "rows_per_second": len(rows) / seconds}


def first(folder: Path) -> dict[str, float]:
    """Time the first shuffled batch from the spooled rows, and a thousand after it."""
    from paraclip.tasks.training.data import Images
    from paraclip_core.training.data import DataOrder, make_batch, spool_rows

    began = time.perf_counter()
    images = Images(folder / "features")
    rows = spool_rows(folder / "rows", KINDS, ())
    order = DataOrder(len(rows), 512, 0)
    own = images.of_rows(folder / "rows")
    make_batch(rows, order.batch(0), KINDS, own.of_step(order.batch(0)))
    seconds = time.perf_counter() - began
    began, steps = time.perf_counter(), range(1, 1000)
    for step in steps:
        make_batch(rows, order.batch(step), KINDS, own.of_step(order.batch(step)))
    return {"seconds": seconds, "batch_milliseconds": 1000 * (time.perf_counter() - began) / len(steps)}


def naive(folder: Path) -> dict[str, float]:
    """The obvious way: every row a Python object, shuffled."""
    began = time.perf_counter()
    places = {
        name: row for row, name in enumerate(pq.read_table(folder / "features/index.parquet")["image_id"].to_pylist())
    }
    rows = []
    for path in sorted((folder / "paraphrases").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows.append(([row[kind] for kind in KINDS], places[row["image_id"]]))
    np.random.default_rng(0).shuffle(rows)
    _ = rows[:512]
    return {"seconds": time.perf_counter() - began}


def wait(folder: Path) -> dict[str, float]:
    """Share of the steps' time that is spent waiting for data."""
    import torch

    from paraclip.tasks.training.data import Images
    from paraclip_core.clip.built_in import built_in_clip
    from paraclip_core.clip.model import freeze_image_encoder
    from paraclip_core.clip.options import ModelOptions
    from paraclip_core.training.data import Batch, DataOrder, make_batch, prefetched, spool_rows
    from paraclip_core.training.losses import Objective, named_pairs
    from paraclip_core.training.options import LossWeights

    clip = built_in_clip(ModelOptions())
    freeze_image_encoder(clip)
    images = Images(folder / "features")
    rows, own = spool_rows(folder / "rows", KINDS, ()), images.of_rows(folder / "rows")
    objective = Objective(clip, named_pairs(LossWeights()), "bf16")
    waited, began, steps = 0.0, 0.0, 12
    order = DataOrder(len(rows), 512, 0)

    def batch(step: int) -> Batch:
        return make_batch(rows, order.batch(step), KINDS, own.of_step(order.batch(step)))

    with prefetched(batch, range(steps)) as batches:
        for step in range(steps):
            asked = time.perf_counter()
            prepared = next(batches)
            if step == 2:
                waited, began = 0.0, asked  # the first steps warm up
            waited += time.perf_counter() - asked
            objective.gradients(prepared)
            clip.model.zero_grad()
    seconds = time.perf_counter() - began
    return {"share": waited / seconds, "step_seconds": seconds / (steps - 2), "threads": torch.get_num_threads()}


PARTS = {"spool": spool, "first": first, "naive": naive, "wait": wait}


def main() -> None:
    """Measure and print one JSON line per figure."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256, help="of the features; 256 is the built-in base's")
    parser.add_argument("--naive-rows", type=int, default=100_000, help="rows of the Python side, which is scaled up")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        figures = PARTS[options.part](options.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**figures, "cpu_seconds": time.process_time(), "peak_gib": peak}))
        return
    with tempfile.TemporaryDirectory(prefix="paraclip-rows-") as temporary:
        small, whole = Path(temporary) / "small", Path(temporary) / "whole"
        make(small, options.naive_rows, options.dim)
        other = in_fresh_process(__file__, "naive", small)["seconds"] * options.rows / options.naive_rows
        make(whole, options.rows, options.dim)
        spooled, opened, waited = (in_fresh_process(__file__, part, whole) for part in ("spool", "first", "wait"))
    against = f"a list of Python rows, scaled up from {options.naive_rows:,}"
    record("loader_spool", spooled["rows_per_second"], "rows/s", against, other / spooled["seconds"])
    record("loader_first_batch", opened["seconds"], "s", against, other / opened["seconds"])
    record("loader_wait", 100 * waited["share"], "% of a step", "2 %", 0.02 / max(waited["share"], 1e-6))


if __name__ == "__main__":
    main()
