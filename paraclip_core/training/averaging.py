"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """avg ← d · avg + (1 - d) · weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The second term lets short runs forget their starting point (as TensorFlow's ``ExponentialMovingAverage`` does).
    With a decay of 0 there is no average, and everything here leaves the weights as they are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Start from the weights as they are."""
        self._parameters, self._decay = parameters, decay
        self.tensors: dict[str, Tensor] = {}
        """The averages by the parameters' names; a checkpoint holds them."""
        if decay:
            self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(self._parameters[name], 1 - decay)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's averages."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in place of the weights, for as long as the block lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def take(self) -> None:
        """Put the averages into the weights for good."""
        for name, average in self.tensors.items():
            self._parameters[name].copy_(average)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.tensors.items():
            weights = self._parameters[name].detach().clone()
            self._parameters[name].copy_(average)
            average.copy_(weights)
