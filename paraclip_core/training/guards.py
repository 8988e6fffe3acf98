"""What a training run asks of its process: reproducible kernels, and a word before it is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["deterministic", "sigterm_noticed"]


@contextmanager
def deterministic() -> Iterator[None]:
    """Only kernels that give the same bytes for the same input, while training lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    fillings: Any = torch.utils.deterministic  # its attributes are made at run time
    filled = fillings.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Every chunk of texts has a shape of its own. oneDNN keeps what it builds for each, tens of megabytes a step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
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
