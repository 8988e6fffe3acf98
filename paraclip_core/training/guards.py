"""What a training run asks of its process: reproducible kernels, notice before it is stopped, and the batch that broke
it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.training.memory import bound_kernel_cache
from paraclip_core.training.rows import Batch, TrainingRows

__all__ = ["deterministic", "save_batch", "sigterm_noticed"]


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
