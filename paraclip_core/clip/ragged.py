"""Token lists of different lengths, and their prefix trie, of which a causal encoder computes each node once.

In a causal encoder a token's state depends only on the tokens before it. Texts with a common prefix ("a man in a …")
share states, and a repeated text costs nothing: with three captions for each of 256 photographs, a quarter of the
tokens need not be computed. Attention runs in blocks of slots. A block holds whole texts, so a node that two blocks
share has a slot in both, and is one row everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """Token lists back to back: list `i` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    """uint16 [tokens]; wider if the tokenizer's vocabulary needs it."""
    offsets: np.ndarray
    """int64 [n + 1], increasing from 0."""

    @classmethod
    def from_arrow(cls, lists: pa.ListArray | pa.ChunkedArray) -> Ragged:
        """Token lists of a table's column, which may be a slice or have several chunks."""
        if isinstance(lists, pa.ChunkedArray):
            return cls.concatenate([cls.from_arrow(chunk) for chunk in lists.chunks])
        offsets = np.asarray(lists.offsets, dtype=np.int64)
        values = np.asarray(lists.values)[offsets[0] : offsets[-1]] if len(offsets) else np.empty(0, np.uint16)
        return cls(values, offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], dtype: type[np.integer] = np.uint16) -> Ragged:
        """Token lists from a sequence of sequences."""
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(tokens) for tokens in lists], out=offsets[1:])
        values = np.fromiter((token for tokens in lists for token in tokens), dtype, int(offsets[-1]))
        return cls(values, offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The lists of all parts, one part after the other."""
        if not parts:
            return cls(np.empty(0, np.uint16), np.zeros(1, np.int64))
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each list."""
        return np.diff(self.offsets)

    def take(self, indices: np.ndarray | Sequence[int]) -> Ragged:
        """The lists at `indices`, in that order; indices may repeat."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(self.offsets[chosen], lengths) + within], offsets)

    def padded(self, length: int | None = None, pad: int = 0) -> np.ndarray:
        """int64 [n, length] with `pad` after each list; `length` defaults to that of the longest list."""
        lengths = self.lengths
        width = int(lengths.max(initial=0)) if length is None else length
        out = np.full((len(self), width), pad, np.int64)
        out[np.arange(width) < lengths[:, None]] = self.values
        return out


SLOTS = 64
Array = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixTrie:
    """N nodes, one for each prefix, in B blocks of S slots; E nodes end texts."""

    tokens: Array
    """Last token of each prefix, [N]."""
    positions: Array
    """Its position in the text, [N]."""
    slot_nodes: Array
    """Node of each slot, [B · S]; 0 for an empty slot."""
    primary_slot: Array
    """The slot that a node's output is read from, [N]."""
    extra_slots: Array
    """Further slots of nodes that blocks share."""
    mask: NDArray[np.bool_]
    """Slots of the same block that a slot attends to, [B, S, S]: those of its prefixes; itself if it is empty."""
    ends: Array
    """Nodes where texts end, [E], each once."""
    text_ends: Array
    """For each text the place of its end among `ends`, [n]."""


def alphabetical(texts: Ragged) -> Array:
    """The order of texts by their tokens, int64 [n]: texts with a common prefix become neighbors."""
    size = max(texts.values.dtype.itemsize, 2)
    # By length first: a text comes before those that continue with token 0, which looks like padding.
    order = np.argsort(texts.lengths, kind="stable")
    padded = texts.take(order).padded().astype(f">u{size}")
    if not padded.size:
        return order
    keys = np.ascontiguousarray(padded).view(f"S{padded.shape[1] * size}")[:, 0]
    return order[np.argsort(keys, kind="stable")]


def trie_chunks(texts: Ragged, budget: int) -> Iterator[slice]:
    """Cut sorted texts into chunks of at most `budget` nodes (at least one text)."""
    lengths, shared = texts.lengths.tolist(), _shared(texts.padded(pad=-1), texts.lengths).tolist()
    start = nodes = 0
    for number, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if number > start and nodes + length - common > budget:
            yield slice(start, number)
            start, nodes = number, 0
        nodes += length - common if number > start else length
    if lengths:
        yield slice(start, len(lengths))


def prefix_trie(texts: Ragged, slots: int = SLOTS) -> PrefixTrie:
    """The prefix trie of texts, none of them empty, in blocks of at least `slots` slots.

    Texts sorted by :func:`alphabetical` share the most; other orders are also correct.
    """
    lengths = texts.lengths
    padded = texts.padded(pad=-1)
    positions = np.arange(padded.shape[1])
    inside = positions < lengths[:, None]
    common = _shared(padded, lengths)
    room = max(slots, -(-int(lengths.max()) // 16) * 16)
    block, own = _blocks(lengths.tolist(), common.tolist(), room)
    new = inside & (positions >= common[:, None])
    node = _latest(new, np.cumsum(new).reshape(new.shape) - 1)
    # Within blocks: the slots of each text's tokens.
    placed = inside & (positions >= own[:, None])
    counted = np.cumsum(placed).reshape(placed.shape) - 1
    firsts = np.flatnonzero(np.diff(block, prepend=-1))
    slot = _latest(placed, counted - counted[firsts, 0][block][:, None] + (block * room)[:, None])
    primary_slot = slot[new]
    nodes = np.zeros((block[-1] + 1) * room, np.int64)
    nodes[slot[placed]] = node[placed]
    ends, text_ends = np.unique(node[np.arange(len(texts)), lengths - 1], return_inverse=True)
    return PrefixTrie(
        tokens=padded[new],
        positions=np.nonzero(new)[1],
        slot_nodes=nodes,
        primary_slot=primary_slot,
        extra_slots=np.setdiff1d(slot[placed], primary_slot),
        mask=_mask(placed, slot, int(block[-1]) + 1, room),
        ends=ends,
        text_ends=text_ends,
    )


def _shared(padded: Array, lengths: Array) -> Array:
    """Length of the prefix that each text shares with the one before it, [n]."""
    common = np.zeros(len(lengths), np.int64)
    if len(lengths) > 1:
        same = np.logical_and.accumulate((padded[1:] == padded[:-1]) & (padded[1:] >= 0), axis=1)
        common[1:] = same.sum(1)
    return common


def _blocks(lengths: list[int], common: list[int], room: int) -> tuple[Array, Array]:
    """Each text's block, and the number of its tokens that already have a slot there."""
    blocks, own = [], []
    block = used = 0
    for number, (length, shared) in enumerate(zip(lengths, common, strict=True)):
        if number and used + length - shared > room:
            block, used = block + 1, 0
        in_block = shared if used else 0
        blocks.append(block)
        own.append(in_block)
        used += length - in_block
    return np.asarray(blocks), np.asarray(own)


def _latest(new: NDArray[np.bool_], values: Array) -> Array:
    """For each text and position, the latest value at that position in this text or an earlier one."""
    return np.maximum.accumulate(np.where(new, values, -1), axis=0)


def _mask(placed: NDArray[np.bool_], slot: Array, blocks: int, room: int) -> NDArray[np.bool_]:
    mask = np.zeros((blocks, room, room), np.bool_)
    own = np.arange(room)
    mask[:, own, own] = True
    rows_with_new = np.flatnonzero(placed.any(1))
    for at in range(placed.shape[1]):
        rows = rows_with_new[placed[rows_with_new, at]]
        queries = slot[rows, at]
        for before in range(at):
            mask[queries // room, queries % room, slot[rows, before] % room] = True
    return mask
