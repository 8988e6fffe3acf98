"""Training in several processes, as torchrun starts them.

Each process embeds its share of a batch's texts. From the gathered embeddings every process computes the loss of the
whole batch, and runs its own share backward; the summed gradients are those of one process. So data, loss and
checkpoints do not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(hours=2)
"""How long the others wait for the first process, which alone validates and writes checkpoints."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"
    """Where tensors that are sent must be."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over all processes; a parameter without any keeps none."""
        if self.count == 1:
            return
        # A process without texts has no gradients.
        counts = self.sum(torch.tensor([int(p.grad is not None) for p in parameters], device=self.device)).tolist()
        pending = []
        for parameter, count in zip(parameters, counts, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                pending.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()

    def first_ones(self, number: int) -> int:
        """The first process's number."""
        sent = torch.tensor(number, device=self.device)
        if self.count > 1:
            dist.broadcast(sent, 0)
        return int(sent)


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started (environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
