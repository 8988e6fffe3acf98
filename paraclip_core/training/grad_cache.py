"""Embeddings of any number of texts, with gradients, in fixed memory.

Gradient caching (GradCache, arXiv 2101.06983): embed all texts without keeping anything for the backward pass, compute
the loss's gradient with respect to the embeddings, then embed each group again and run it backward. The first pass of
a small batch is kept instead. Either way every group runs backward on its own and gradients are added in the same
order, so the bytes are equal.

On a CPU two groups run in parallel, each on half of the cores. A step is some ten thousand short operations; if all
cores share each of them, they wait for one another ten thousand times.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from paraclip_core.clip.encode import CHUNK_TOKENS, Precision, encode_ragged, encoding_order, text_encoder
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.ragged import Ragged

T = TypeVar("T")

GROUP_TOKENS = 6144
"""Approximate maximum of tokens that run backward together. Weight gradients are summed in the group's precision within
a group, and in fp32 across groups."""

FEW_TOKENS = 2048
"""Up to this many tokens form one group: a second one would cost more than it saves."""

KEPT_TOKENS = 16_384
"""Maximum of tokens whose first pass is kept for the backward pass, with padding: about 8 GiB for ViT-L-14 in bf16."""

STREAMS = 2
"""Groups that run in parallel on a CPU. Each needs its own memory, and prefixes are not shared across groups."""


class CachedTexts:
    """The texts of one step."""

    def __init__(self, clip: ClipModel, tokens: Ragged, precision: Precision) -> None:
        """Embed these texts."""
        self._clip, self._tokens = clip, tokens
        self._precision: Precision = precision
        order = encoding_order(clip, tokens)
        encoder = text_encoder(clip)
        widths = encoder.widths(tokens.lengths[order], clip.context_length)
        self._keep = int(widths.sum()) <= KEPT_TOKENS
        # A packed encoder sums weight gradients in fp32 and pads nothing; the others' chunks are short, to save
        # padding.
        self._chunk_tokens = GROUP_TOKENS if encoder.packed is not None else CHUNK_TOKENS
        self._groups = _groups(order, widths)
        # torch sets the attention kernel for the whole process; a packed encoder has its own.
        self._packed = encoder.packed is not None
        self._each = side_by_side if self._packed and clip.device.type == "cpu" else in_turn
        self._outputs: list[Tensor] = []

    def embed(self) -> Tensor:
        """Embeddings of all texts, float32 [n, d], L2-normalized, detached."""
        embeddings = torch.zeros(len(self._tokens), self._clip.embed_dim, device=self._clip.device)
        for rows, output in zip(self._groups, self._each(self._first_pass, len(self._groups)), strict=True):
            if self._keep:
                self._outputs.append(output)
            embeddings[torch.from_numpy(rows).to(embeddings.device)] = output.detach()
        return embeddings

    def backward(self, gradient: Tensor, parameters: Sequence[Tensor]) -> None:
        """Backpropagate the gradient of the embeddings, [n, d], into the parameters' ``grad``."""

        def group_gradients(number: int) -> tuple[Tensor | None, ...]:
            rows = torch.from_numpy(self._groups[number]).to(gradient.device)
            output = self._outputs[number] if self._keep else self._encode(number)
            gradients = torch.autograd.grad(output, parameters, gradient[rows], allow_unused=True)
            if self._keep:
                self._outputs[number] = gradient  # frees this group's memory
            return gradients

        for gradients in self._each(group_gradients, len(self._groups)):
            _add(parameters, gradients)
            del gradients

    def _first_pass(self, number: int) -> Tensor:
        with torch.set_grad_enabled(self._keep):
            return self._encode(number)

    def _encode(self, number: int) -> Tensor:
        texts = self._tokens.take(self._groups[number])
        with nullcontext() if self._packed else _attention(self._clip.device):
            return encode_ragged(self._clip, texts, chunk_tokens=self._chunk_tokens, precision=self._precision)


def _add(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to the parameters' ``grad``."""
    taken: set[int] = set()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.is_contiguous() and gradient.data_ptr() not in taken:
            parameter.grad = gradient
            taken.add(gradient.data_ptr())
        else:
            # autograd returns the same tensor for parameters that are added to each other.
            parameter.grad = gradient.clone(memory_format=torch.contiguous_format)


def _groups(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rows into groups of roughly equal numbers of tokens, at most about GROUP_TOKENS; `lengths` include padding.

    The number of groups does not depend on the number of cores, because it affects the last bits of the gradients.
    """
    ends = np.cumsum(lengths)
    tokens = int(ends[-1]) if len(ends) else 0
    count = STREAMS * -(-tokens // (STREAMS * GROUP_TOKENS)) if tokens > FEW_TOKENS else min(tokens, 1)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count) if count else []
    return [group for group in np.split(rows, cuts) if len(group)]


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    # On a CPU, in bf16 and for texts this short, the fused kernel's backward pass takes three times as long.
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def in_turn(work: Callable[[int], T], count: int) -> Iterator[T]:
    """Results of `work` for 0 to `count` - 1, one after the other."""
    return map(work, range(count))


def side_by_side(work: Callable[[int], T], count: int) -> Iterator[T]:
    """Like :func:`in_turn`, but with two cores or more `STREAMS` calls run at once, in threads.

    Gradient mode and autocast are thread-local, so `work` must set them. If a call fails, those already started
    finish before the error is raised.
    """
    cores = torch.get_num_threads()
    if count < 2 or cores < STREAMS:
        yield from in_turn(work, count)
        return
    pool, begun = _pool(cores), deque[Future[T]]()
    try:
        for number in range(count):
            begun.append(pool.submit(work, number))
            if len(begun) == STREAMS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        wait(begun)


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    started = threading.Barrier(STREAMS + 1)

    def start() -> None:
        # A thread's first query of its thread count overwrites it with the process's, so query it before setting it.
        torch.get_num_threads()
        torch.set_num_threads(cores // STREAMS)
        started.wait()

    pool = ThreadPoolExecutor(STREAMS, "streams", start)
    for _ in range(STREAMS):
        pool.submit(int)
    started.wait()
    # A thread's count also applies to threads that have not queried theirs yet.
    torch.set_num_threads(cores)
    return pool
