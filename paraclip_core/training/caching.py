"""Embeddings of any number of texts, with gradients, in fixed memory.

Gradient caching (GradCache, arXiv 2101.06983): embed all texts without keeping anything for the backward pass, compute
the loss's gradient by the embeddings, then embed group by group again and send each group's part of the gradient back.
Where all groups fit into memory at once the first pass is kept instead. Either way every group runs backward on its
own, and their gradients are added up in the same order, so that these are the same, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from paraclip_core.clip.encode import CHUNK_TOKENS, Precision, encode_ragged, shares
from paraclip_core.clip.models import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.clip.towers import text_tower
from paraclip_core.training.distributed import ALONE, Processes
from paraclip_core.training.memory import anonymous_memory, free_heap
from paraclip_core.training.streams import STREAMS, in_turn, side_by_side

__all__ = ["GROUP_TOKENS", "CachedTexts", "activation_bytes", "touched_vocabulary"]

GROUP_TOKENS = 6144
"""Tokens that go backward together, at most about. Gradients of one group's weights add up in the precision of its
arithmetic, those of several groups in fp32."""

FEW_TOKENS = 2048
"""So few are one group: what each group costs beside its texts would be more than is gained by a second one."""

NOT_COMPUTED = ("visual.", "text_decoder.")
"""Parts of a model that texts do not pass: the image tower, and what CoCa writes captions with."""


class CachedTexts:
    """The texts of one step."""

    def __init__(
        self,
        clip: ClipModel,
        tokens: Ragged,
        *,
        precision: Precision,
        keep: bool,
        most_bytes: float = 0,
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        """Take this process's share of the texts.

        Args:
            clip: the model.
            tokens: all texts of the step, n of them.
            precision: arithmetic of the tower.
            keep: keep the first pass for the backward one. More memory, less time, the same result.
            most_bytes: of this process's memory, which may hold on to what is freed until it has as much.
            seed: of the dropout, where the tower has any.
            processes: who embeds the rest.
        """
        self._clip, self._tokens, self._keep = clip, tokens, keep
        self._precision: Precision = precision
        self._most_bytes, self._seed, self._processes = most_bytes, seed, processes
        mine = shares(clip, tokens, processes.count)[processes.rank]
        tower = text_tower(clip)
        # Weights whose gradients add up in fp32 need no small chunks; the others' chunks are short, to save padding.
        self._chunk_tokens = GROUP_TOKENS if tower.packed is not None else CHUNK_TOKENS
        self._groups = _groups(mine, tower.widths(tokens.lengths[mine], clip.context_length))
        # The random numbers of dropout are a process's own; only our transformer is known to need none.
        self._alone = tower.packed is not None
        self._each = side_by_side if self._alone and clip.device.type == "cpu" else in_turn
        self._kept: list[Tensor] = []

    def embed(self) -> Tensor:
        """Embeddings of all texts, float32 [n, d], L2-normalised, without history."""
        found = torch.zeros(len(self._tokens), self._clip.embed_dim, device=self._clip.device)
        for rows, output in zip(self._groups, self._each(self._first_pass, len(self._groups)), strict=True):
            if self._keep:
                self._kept.append(output)
            found[torch.from_numpy(rows).to(found.device)] = output.detach()
            self._tidy()
        return self._processes.sum(found)

    def send_back(self, gradient: Tensor, parameters: Sequence[Tensor]) -> None:
        """Add to the parameters' ``grad`` what follows from the gradient by the embeddings, [n, d]."""

        def backward(number: int) -> tuple[Tensor | None, ...]:
            rows = torch.from_numpy(self._groups[number]).to(gradient.device)
            output = self._kept[number] if self._keep else self._encode(number)
            found = torch.autograd.grad(output, parameters, gradient[rows], allow_unused=True)
            if self._keep:
                self._kept[number] = gradient  # so that this group's memory is free
            return found

        for parts in self._each(backward, len(self._groups)):
            _add(parameters, parts)
            del parts
            self._tidy()

    def _tidy(self) -> None:
        if not self._keep and anonymous_memory() >= self._most_bytes:
            free_heap()

    def _first_pass(self, number: int) -> Tensor:
        with torch.set_grad_enabled(self._keep):
            return self._encode(number)

    def _encode(self, number: int) -> Tensor:
        texts = self._tokens.take(self._groups[number])
        with nullcontext() if self._alone else self._for_the_process(number):
            return encode_ragged(self._clip, texts, chunk_tokens=self._chunk_tokens, precision=self._precision)

    @contextmanager
    def _for_the_process(self, number: int) -> Iterator[None]:
        """What other towers than ours need set in the whole process: dropout's seed and the kind of attention."""
        torch.manual_seed((self._seed * 1_000_003 + number * self._processes.count + self._processes.rank) % 2**63)
        with _attention(self._clip.device):
            yield


def _add(parameters: Sequence[Tensor], parts: Sequence[Tensor | None]) -> None:
    """Add gradients to the parameters' ``grad``."""
    taken: set[int] = set()
    for parameter, part in zip(parameters, parts, strict=True):
        if part is None:
            continue
        if parameter.grad is not None:
            parameter.grad.add_(part)
        elif part.is_contiguous() and part.data_ptr() not in taken:
            parameter.grad = part
            taken.add(part.data_ptr())
        else:
            # Parameters that are added to each other may be given one gradient.
            parameter.grad = part.clone(memory_format=torch.contiguous_format)


def _groups(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rows into groups of about as many tokens each, near GROUP_TOKENS at most; padding is among `lengths`.

    Their number does not depend on the cores, since it says in which last bits gradients are added up.
    """
    until = np.cumsum(lengths)
    all_tokens = int(until[-1]) if len(until) else 0
    count = STREAMS * -(-all_tokens // (STREAMS * GROUP_TOKENS)) if all_tokens > FEW_TOKENS else min(all_tokens, 1)
    cuts = np.searchsorted(until, until[-1] * np.arange(1, count) / count) if count else []
    return [group for group in np.split(rows, cuts) if len(group)]


def activation_bytes(clip: ClipModel, precision: Precision) -> int:
    """About how many bytes the backward pass needs to find for each token: the inputs and outputs of every matrix.

    Right within a factor of 2.5 whatever the tower; attention's square of the text's length is left out.
    """
    embeddings = {id(module.weight) for module in clip.model.modules() if isinstance(module, nn.Embedding)}
    numbers = sum(
        sum(parameter.shape)
        for name, parameter in clip.model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in embeddings and not name.startswith(NOT_COMPUTED)
    )
    return numbers * (4 if precision == "fp32" else 3)


@contextmanager
def touched_vocabulary(clip: ClipModel, tokens: Ragged) -> Iterator[list[Tensor]]:
    """Let the token embedding take gradients in the rows of these tokens only, and give them to it at the end.

    Otherwise every chunk makes and adds a gradient of the whole vocabulary, which is most of the parameters.
    In the block these rows, if there is such an embedding, are parameters of their own.
    """
    module = _vocabulary(clip)
    if module is None:
        yield []
        return
    weight, whole, device = module.weight, module.forward, module.weight.device
    # 0 and 1 are what towers pad with; chunks that hold a token beyond these rows use the whole table.
    padding = [0, 1] if module.padding_idx is None else [0, 1, module.padding_idx]
    known = np.union1d(tokens.values.astype(np.int64), padding)
    place = torch.full((len(weight),), -1, dtype=torch.int64)
    place[torch.from_numpy(known)] = torch.arange(len(known))
    place, rows = place.to(device), torch.from_numpy(known).to(device)
    few = weight.detach()[rows].requires_grad_()
    look_up = _twin(module, few).forward  # hooks run when the module itself is called

    def forward(ids: Tensor) -> Tensor:
        places = place[ids]
        return whole(ids) if bool((places < 0).any()) else look_up(places)

    module.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield [few]
    finally:
        del module.forward
    if few.grad is not None:
        if module.padding_idx is not None:
            few.grad[place[module.padding_idx]] = 0.0
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad[rows] += few.grad


def _twin(module: nn.Embedding, table: Tensor) -> nn.Embedding:
    """The same kind of module over another table: some scale what they look up, as NLLB's does."""
    twin = copy.copy(module)
    twin._parameters = {}
    twin.weight, twin.padding_idx = table, None  # pyright: ignore[reportAttributeAccessIssue]
    return twin


def _vocabulary(clip: ClipModel) -> nn.Embedding | None:
    """The token embedding, if it is trained: the largest table of the text tower."""
    tables = [m for n, m in clip.model.named_modules() if isinstance(m, nn.Embedding) and not n.startswith("visual.")]
    largest = max(tables, key=lambda table: table.num_embeddings, default=None)
    plain = largest is not None and largest.max_norm is None and not largest.scale_grad_by_freq and not largest.sparse
    return largest if plain and largest is not None and largest.weight.requires_grad else None


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    # The fused kernel's backward pass takes a CPU three times as long, in bf16 and on texts this short.
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
