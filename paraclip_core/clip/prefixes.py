"""Texts as a forest of their prefixes, so that a causal tower computes each prefix once.

In a causal tower the state of a token depends only on the tokens before it. Texts that begin alike ("a man in a …")
share those tokens' states, and a text that comes twice costs nothing the second time: of three captions for each of 256
photographs, a quarter of all tokens need no computing. Attention is computed in blocks of slots; a block holds whole
texts, so a prefix that two blocks share has a slot in both, but only one node in everything else that a tower does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.ragged import Ragged

__all__ = ["Forest", "alphabetical", "count_nodes", "forest_of", "runs"]

SLOTS = 64
Array = NDArray[np.int64]


@dataclass(frozen=True)
class Forest:
    """Some texts' prefixes; N of them, in B blocks of S slots."""

    tokens: Array
    """Last token of each prefix, [N]."""
    depths: Array
    """Its position in the text, [N]."""
    slots: Array
    """Node that is computed in each slot, [B · S]; 0 where the slot is empty."""
    homes: Array
    """A slot of each node, [N]: its output is taken from there."""
    again: Array
    """Further slots of nodes that blocks share."""
    seen: NDArray[np.bool_]
    """Which slots of its block a slot looks at, [B, S, S]: those of its prefixes; its own alone where it is empty."""
    ends: Array
    """Nodes where texts end, [E], each once."""
    texts: Array
    """For each text where its end is among `ends`, [n]."""


def alphabetical(texts: Ragged) -> Array:
    """The order of texts by their tokens, so that those with a common beginning are neighbours: int64 [n]."""
    size = max(texts.values.dtype.itemsize, 2)
    # By length first: a text comes before those that go on with the token that looks like padding.
    order = np.argsort(texts.lengths, kind="stable")
    padded = texts.take(order).padded().astype(f">u{size}")
    if not padded.size:
        return order
    keys = np.ascontiguousarray(padded).view(f"S{padded.shape[1] * size}")[:, 0]
    return order[np.argsort(keys, kind="stable")]


def runs(texts: Ragged, budget: int) -> Iterator[slice]:
    """Cut sorted texts into runs of at most `budget` nodes (one text at least)."""
    lengths, shared = texts.lengths.tolist(), _shared(texts.padded(pad=-1), texts.lengths).tolist()
    start = nodes = 0
    for number, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if number > start and nodes + length - common > budget:
            yield slice(start, number)
            start, nodes = number, 0
        nodes += length - common if number > start else length
    if lengths:
        yield slice(start, len(lengths))


def count_nodes(texts: Ragged) -> int:
    """How many nodes the forest of sorted texts has."""
    return len(texts.values) - int(_shared(texts.padded(pad=-1), texts.lengths).sum())


def forest_of(texts: Ragged, slots: int = SLOTS) -> Forest:
    """The forest of sorted texts, none of them empty.

    Args:
        texts: sorted by :func:`alphabetical`; other orders are right, too, but share less.
        slots: slots of a block, at least; more where a text needs them.
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
    # Within blocks: where each text's tokens have their slots.
    placed = inside & (positions >= own[:, None])
    counted = np.cumsum(placed).reshape(placed.shape) - 1
    firsts = np.flatnonzero(np.diff(block, prepend=-1))
    slot = _latest(placed, counted - counted[firsts, 0][block][:, None] + (block * room)[:, None])
    homes = slot[new]
    nodes = np.zeros((block[-1] + 1) * room, np.int64)
    nodes[slot[placed]] = node[placed]
    ends, back = np.unique(node[np.arange(len(texts)), lengths - 1], return_inverse=True)
    return Forest(
        tokens=padded[new],
        depths=np.nonzero(new)[1],
        slots=nodes,
        homes=homes,
        again=np.setdiff1d(slot[placed], homes),
        seen=_seen(placed, slot, int(block[-1]) + 1, room),
        ends=ends,
        texts=back,
    )


def _shared(padded: Array, lengths: Array) -> Array:
    """How many tokens each text has in common with the one before it, [n]."""
    common = np.zeros(len(lengths), np.int64)
    if len(lengths) > 1:
        same = np.logical_and.accumulate((padded[1:] == padded[:-1]) & (padded[1:] >= 0), axis=1)
        common[1:] = same.sum(1)
    return common


def _blocks(lengths: list[int], common: list[int], room: int) -> tuple[Array, Array]:
    """Each text's block, and how many of its tokens have a slot there already."""
    blocks, own = [], []
    block = used = 0
    for number, (length, shared) in enumerate(zip(lengths, common, strict=True)):
        if number and used + length - shared > room:
            block, used = block + 1, 0
        found = shared if used else 0
        blocks.append(block)
        own.append(found)
        used += length - found
    return np.asarray(blocks), np.asarray(own)


def _latest(new: NDArray[np.bool_], values: Array) -> Array:
    """For each text and position the value that was last made at that position, here or in a text before."""
    return np.maximum.accumulate(np.where(new, values, -1), axis=0)


def _seen(placed: NDArray[np.bool_], slot: Array, blocks: int, room: int) -> NDArray[np.bool_]:
    seen = np.zeros((blocks, room, room), np.bool_)
    own = np.arange(room)
    seen[:, own, own] = True
    makers = np.flatnonzero(placed.any(1))
    for at in range(placed.shape[1]):
        rows = makers[placed[makers, at]]
        queries = slot[rows, at]
        for before in range(at):
            seen[queries // room, queries % room, slot[rows, before] % room] = True
    return seen
