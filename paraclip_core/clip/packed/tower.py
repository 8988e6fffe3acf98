"""A causal text tower over a prefix trie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paraclip_core.clip.packed.ragged import Ragged
from paraclip_core.clip.packed.transformer import PackedTransformer, packs
from paraclip_core.clip.packed.trie import PrefixTrie, alphabetical, prefix_trie, trie_chunks


@dataclass(frozen=True)
class PackedTower:
    """A causal text tower of open_clip that computes shared prefixes of texts once."""

    tower: Any
    pool: str
    """open_clip's pooling: argmax, eos or first."""
    end: int | None
    """End token, for `eos`."""
    pad: int
    room: int
    """Padding tokens that the pooling looks at."""
    project: Callable[[Tensor], Tensor]
    """The tower's projection into the shared space."""

    def encode(
        self, texts: Ragged, context: int, chunk_tokens: int, dtype: torch.dtype
    ) -> tuple[NDArray[np.int64], list[Tensor]]:
        """Encode in chunks of at most `chunk_tokens` nodes.

        Returns:
            The order in which the texts were encoded, int64 [n], and each chunk's [·, embed_dim], not normalized.
        """
        texts = self._cut(texts, context)
        order = alphabetical(texts)
        texts = texts.take(order)
        # Its weights are cast once for all chunks.
        transformer = PackedTransformer(self.tower.transformer.resblocks, dtype)
        tries = (prefix_trie(texts.take(np.arange(c.start, c.stop))) for c in trie_chunks(texts, chunk_tokens))
        return order, [self._forward(transformer, trie) for trie in tries]

    def _cut(self, texts: Ragged, context: int) -> Ragged:
        """The texts up to the token that is pooled."""
        ids = texts.padded(min(int(texts.lengths.max()) + self.room, context), self.pad)
        pooled_ids = ids == self.end if self.pool == "eos" else ids
        pooled = np.zeros(len(ids), np.int64) if self.pool == "first" else pooled_ids.argmax(1)
        inside = np.arange(ids.shape[1]) <= pooled[:, None]
        return Ragged(ids[inside].astype(texts.values.dtype), np.concatenate([[0], np.cumsum(pooled + 1)]))

    def _forward(self, transformer: PackedTransformer, trie: PrefixTrie) -> Tensor:
        table: Tensor = self.tower.positional_embedding
        tokens, positions, text_ends = (
            torch.from_numpy(part).to(table.device) for part in (trie.tokens, trie.positions, trie.text_ends)
        )
        x = self.tower.token_embedding(tokens) + F.embedding(positions, table)
        return self.project(self.tower.ln_final(transformer(x, trie))).index_select(0, text_ends)


def packed_tower(
    tower: Any, pool: str, end: int | None, pad: int, room: int, project: Callable[[Tensor], Tensor]
) -> PackedTower | None:
    """The packed tower of a causal text tower, None where it has parts that :mod:`.transformer` does not compute."""
    if (
        packs(tower.transformer.resblocks)
        and not tower.transformer.grad_checkpointing
        and all(weight.dtype is torch.float32 for weight in (tower.token_embedding.weight, tower.positional_embedding))
    ):
        return PackedTower(tower, pool, end, pad, room, project)
    return None
