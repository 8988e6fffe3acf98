"""Filtering: how it scales with processes.

    python benchmarks/bench_filters.py [--captions 4000]

`judging_scales`: this many captions with two answers each are filtered by one process and by two, with the default
filters, sentence encoder included; the target is 1.8 times as many captions per second. Processes are started and
models loaded before the clock starts. The filter results must be the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import torch
from instant import MODEL, answer, caption, instant_run
from record import arguments, record, wait_as_stages_do

from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.paraphrase import filter_spec
from paraclip_core.config import Settings
from paraclip_core.paraphrase.filter_pool import BLOCK_ROWS, FilterPool
from paraclip_core.paraphrase.filtering import FilterSpec
from paraclip_core.paraphrase.keys import step_requests
from paraclip_core.paraphrase.step_tables import NO_PARENT
from paraclip_core.tables import ANSWERS

SCALE = 1.8
PROCESSES = (1, 2)
WARM_ROWS = 32
ALL_ROWS = 1 << 30
"""More rows than a pool filters without processes."""


def blocks_of(settings: Settings, start: int, rows: int, size: int) -> list[pa.RecordBatch]:
    """Made captions with their answers, cut into blocks as the stage cuts them."""
    request = step_requests(settings.paraphrase, 1, MODEL)
    blocks = []
    for first in range(start, start + rows, size):
        texts = [caption(number) for number in range(first, min(first + size, start + rows))]
        columns = {
            "generation": request.keys(texts),
            "parent": [NO_PARENT] * len(texts),
            "caption": texts,
            "source": texts,
            "completions": [[answer(text, draw) for draw in range(settings.paraphrase.sampling.n)] for text in texts],
        }
        blocks.append(pa.RecordBatch.from_pydict(columns, schema=ANSWERS))
    return blocks


def filter_all(
    spec: FilterSpec, processes: int, warm: Sequence[pa.RecordBatch], blocks: Sequence[pa.RecordBatch]
) -> tuple[float, str]:
    """Seconds in which a warm pool filters the blocks, and a hash of the filter results."""
    digest = hashlib.blake2b(digest_size=16)
    with closing(FilterPool(spec, processes)) as pool:
        for _ in pool.filter(warm, ALL_ROWS):
            pass
        began = time.perf_counter()
        for filter_results in pool.filter(blocks, ALL_ROWS):
            digest.update(json.dumps(filter_results.to_pydict(), default=bytes.hex).encode())
        return time.perf_counter() - began, digest.hexdigest()


def scales(captions: int, repeat: int) -> None:
    """Filter with each number of processes in turn, compare bytes, and record."""
    with tempfile.TemporaryDirectory() as folder:
        settings = instant_run(Path(folder), sampling={"n": 2})
        spec = filter_spec(Run(settings).paraphraser, 1)
    warm, blocks = blocks_of(settings, captions, 8 * WARM_ROWS, WARM_ROWS), blocks_of(settings, 0, captions, BLOCK_ROWS)
    rates: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    digests = set()
    for _ in range(repeat):
        for processes in PROCESSES:
            seconds, digest = filter_all(spec, processes, warm, blocks)
            rates[processes].append(captions / seconds)
            digests.add(digest)
    if len(digests) > 1:
        raise SystemExit("the filter results depend on the number of processes")
    alone, both = (statistics.median(rates[processes]) for processes in PROCESSES)
    record("judging_scales", both, "captions/s", f"one process, target {SCALE}", both / alone)


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--captions", type=int, default=4000)
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    wait_as_stages_do()
    # For the process that filters alone: one core, as each of the others has.
    torch.set_num_threads(1)
    scales(chosen.captions, chosen.repeat)


if __name__ == "__main__":
    main()
