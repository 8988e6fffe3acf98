"""What a training run asks of its process: reproducible kernels, a word before it is stopped, and the batch that broke
it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.training.rows import Batch, TrainingRows

__all__ = ["bound_kernel_cache", "deterministic", "free_heap", "keep_freed_memory", "save_batch", "sigterm_noticed"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``, as ``malloc.h`` numbers them."""


def bound_kernel_cache() -> None:
    """Bound what oneDNN keeps; to be called before the first computation, since it looks at the bound only once.

    Every chunk of texts has a shape of its own, and what is built for each is kept. In bf16 on a CPU, 600 shapes of one
    layer of 512 by 2,048 took 1.5 GB; with a bound of 64 0.4 GB, and no more with 1,200 shapes. A step over shared
    beginnings needs about 30 kernels, and its sizes are rounded to few, see ``packed_attention.padded_count``.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def free_heap() -> None:
    """Give the system back what the C library keeps of freed memory, where it has a call for that (glibc).

    Tensors of ever new shapes leave holes in the heap that the next ones do not fit into.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed up to 1 GiB, for as long as the process lives, where it is glibc.

    It gives large blocks back to the system at once otherwise, which clears every page again when the next tensor takes
    it: writing a new tensor of 32 MB took three times as long. A step frees and takes thousands of these.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(TRIM_THRESHOLD, 1 << 30)
        set_option(MMAP_THRESHOLD, 1 << 28)


@contextmanager
def deterministic() -> Iterator[None]:
    """Only kernels that give the same bytes for the same input, while training lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    fillings: Any = torch.utils.deterministic  # its attributes are made at run time
    filled = fillings.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    bound_kernel_cache()
    torch.use_deterministic_algorithms(True)
    fillings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        fillings.fill_uninitialized_memory = filled


@contextmanager
def sigterm_noticed() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came; it is passed on to whoever handled it before, once the block is left."""
    came: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    except ValueError:  # not in the main thread, which alone may listen
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            os.kill(os.getpid(), signal.SIGTERM)


def save_batch(path: Path, rows: TrainingRows, indices: NDArray[np.int64], batch: Batch) -> None:
    """Keep a batch for a person to look at, as a NumPy archive.

    It holds ``caption_ids`` (hexadecimal, as ``hex(caption_id)`` in DuckDB gives them in capitals; none where they were
    not kept), ``rows`` (their numbers among the training rows), ``image_rows`` (rows of the feature matrix) and for
    each kind of text ``<kind>_values`` and ``<kind>_offsets``, its tokens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"caption_ids": np.array(rows.caption_ids(indices), str)}
    arrays |= {"rows": indices, "image_rows": batch.image_rows}
    for kind, tokens in batch.texts.items():
        arrays |= {f"{kind}_values": tokens.values, f"{kind}_offsets": tokens.offsets}
    np.savez(path, **arrays)
