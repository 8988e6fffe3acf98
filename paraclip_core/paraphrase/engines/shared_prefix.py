"""Keys and values of a beginning that prompts share, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

__all__ = ["SharedPrefixes", "common_prefix"]

SHORTEST = 16
"""Tokens below which sharing is not worth it."""
KEPT = 4
"""Beginnings that are remembered: two steps and the word requests, and one more."""

Prefix = tuple[int, ...]
Layers = list[tuple[Any, Any]]


def common_prefix(prompts: Sequence[list[int]]) -> Prefix:
    """The tokens that all prompts begin with; each keeps at least one token of its own."""
    low, high = min(prompts), max(prompts)
    shared = tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    return shared[: min(map(len, prompts)) - 1]


class SharedPrefixes:
    """Key-value caches of prompts' beginnings for one model, the latest few of them."""

    def __init__(self, model: Any) -> None:
        """Nothing is computed yet."""
        self._model = model
        self._layers: dict[Prefix, Layers] = {}
        self._possible = True

    def __len__(self) -> int:
        """Number of beginnings that are remembered."""
        return len(self._layers)

    def find(self, prompts: Sequence[list[int]]) -> Prefix:
        """The beginning of `prompts` to share, computed if it is new; empty where that is not worth it or impossible.

        A known one that is almost as long as the longest is taken again, so that two captions which happen to begin
        alike are no reason to compute a template anew.
        """
        shared = common_prefix(prompts)
        longest = max((p for p in self._layers if shared[: len(p)] == p), key=len, default=())
        if longest and len(shared) - len(longest) < SHORTEST:
            self._layers[longest] = self._layers.pop(longest)
            return longest
        if len(prompts) < 2 or len(shared) < SHORTEST or not self._possible:
            return longest
        layers = self._computed(shared)
        if layers is None:
            self._possible = False
            return ()
        self._layers[shared] = layers
        while len(self._layers) > KEPT:
            del self._layers[next(iter(self._layers))]
        return shared

    def cache(self, prefix: Prefix, rows: int) -> Any:
        """A cache with the beginning for `rows` rows, which may be written on."""
        from transformers import DynamicCache

        repeated = [
            (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self._layers[prefix]
        ]
        return DynamicCache(repeated, config=self._model.config)

    def _computed(self, prefix: Prefix) -> Layers | None:
        """Keys and values, layer by layer; None for models that remember more, or less, than all of them."""
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache(config=self._model.config)
        layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
        if len(layers) < len(cache.layers):
            return None
        ids = torch.tensor([prefix], device=self._model.device)
        with torch.inference_mode():
            self._model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in layers]
