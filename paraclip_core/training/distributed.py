"""Training in several processes, as torchrun starts them.

Each process embeds its share of a batch's texts. The embeddings are then gathered, every process computes the loss of
the whole batch from them, and sends the gradient back through its own share only; the sum of the parameters' gradients
is that of one process. So the data, the loss and the checkpoints know nothing of the number of processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ALONE", "Processes", "joined"]

PATIENCE = timedelta(hours=2)
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
        """Add up a tensor over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients over all processes; a parameter that has none anywhere keeps none."""
        if self.count == 1:
            return
        # A process without a text of its own has no gradients.
        having = self.sum(torch.tensor([int(p.grad is not None) for p in parameters], device=self.device)).tolist()
        sent = []
        for parameter, count in zip(parameters, having, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                sent.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in sent:
            work.wait()

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the first one's tensors, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def send_facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The first process's facts, JSON-ready."""
        if self.count == 1:
            return dict(facts)
        text = json.dumps(facts).encode() if self.first else b""
        size = self.sum(torch.tensor(len(text), device=self.device))
        data = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.first:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started (environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
