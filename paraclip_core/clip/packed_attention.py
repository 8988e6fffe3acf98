"""Attention over a forest of prefixes, in blocks of slots, forward and backward.

On a CPU each step is one batched product or one pass over memory: rows of a head are gathered straight into the order
that the products want, and what the products leave is gathered straight back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paraclip_core.clip.prefixes import Forest

__all__ = ["Places", "attention", "padded_count"]

STEPS = 16
"""How many sizes there are between a power of two and the next."""


def padded_count(count: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows stand for `count` of them, at least one: 1/16 more at most.

    A CPU's bf16 kernels are built for each shape, which takes ten milliseconds apiece, and groups of texts all have
    sizes of their own. Rounded up there are few.
    """
    if dtype is torch.float32 or device.type != "cpu":
        return count
    step = max(1, 2 ** (count - 1).bit_length() // (2 * STEPS))
    return -(-count // step) * step


@dataclass(frozen=True)
class Rows:
    """Numbers of rows that are one head wide, int32."""

    parts: Tensor
    """For [3, B, heads, S]: where among [N, 3, heads] queries, keys and values are."""
    back: Tensor
    """For [N, 3, heads]: where among [3, B, heads, S] their gradients are, or the row after, which is zero."""
    again: Tensor
    """The same for [A, 3, heads]."""
    outputs: Tensor
    """For [B, heads, S]: where among [N, heads] the gradient of a slot's output is, or the row after."""
    outputs_of_ends: Tensor
    """The same among [E, heads], for the last layer."""

    @classmethod
    def of(
        cls, heads: int, slots: Tensor, homes: Tensor, again: Tensor, ends: Tensor, sizes: tuple[int, int, int]
    ) -> Rows:
        """Of the fields of :class:`Places`; `sizes` are S, and the nodes and ends before padding."""
        size, nodes, texts = sizes
        head, part = torch.arange(heads), torch.arange(3)[:, None]
        by_block = slots.view(-1, 1, size)
        blocks = len(by_block)

        def back(of: Tensor) -> Tensor:
            return ((part * blocks + (of // size)[:, None, None]) * heads + head) * size + (of % size)[:, None, None]

        def outputs(found: Tensor, count: int) -> Tensor:
            node = torch.full((len(slots),), len(found)).index_copy_(0, found[:count], torch.arange(count))
            return node.view(-1, 1, size) * heads + head[:, None]

        to_nodes = back(homes)
        to_nodes[nodes:] = 3 * len(slots) * heads
        return cls(
            parts=((by_block * 3 + part[:, None, None]) * heads + head[:, None]).int(),
            back=to_nodes.flatten().int(),
            again=back(again).flatten().int(),
            outputs=outputs(homes, nodes).flatten().int(),
            outputs_of_ends=outputs(homes[ends], texts).flatten().int(),
        )


@dataclass(frozen=True)
class Places:
    """Where attention finds what, on a device; N nodes, B blocks of S slots and E ends after padding."""

    blocks: int
    heads: int
    mask: Tensor
    """0 or -inf, float32 [B, 1, S, S]."""
    rounded_mask: Tensor
    """The same in the arithmetic of attention."""
    slots: Tensor
    """Node of each slot, [B · S]."""
    homes: Tensor
    """Slot of each node, [N]."""
    again: Tensor
    """Further slots of nodes that blocks share, [A]."""
    again_nodes: Tensor
    ends: Tensor
    """Nodes where texts end, [E]; padding repeats the first node."""
    nodes: int
    """Nodes before padding."""
    texts: int
    """Ends before padding."""
    rows: Rows | None
    """On a CPU."""

    @classmethod
    def of(cls, forest: Forest, heads: int, dtype: torch.dtype, device: torch.device) -> Places:
        """Of a forest and an attention in `dtype`."""

        def on_device(indices: Any, count: int | None = None) -> Tensor:
            found = torch.from_numpy(indices)
            return (found if count is None else F.pad(found, (0, count - len(found)))).to(device)

        blocks, size, _ = forest.seen.shape
        nodes, texts = len(forest.tokens), len(forest.ends)
        all_blocks, all_nodes, all_texts = (padded_count(count, dtype, device) for count in (blocks, nodes, texts))
        mask = torch.zeros(all_blocks, size, size, device=device)
        mask[:blocks].masked_fill_(~on_device(forest.seen), float("-inf"))
        slots, homes = on_device(forest.slots, all_blocks * size), on_device(forest.homes, all_nodes)
        ends, again = on_device(forest.ends, all_texts), on_device(forest.again)
        return cls(
            blocks=all_blocks,
            heads=heads,
            mask=mask[:, None],
            rounded_mask=mask[:, None].to(dtype),
            slots=slots,
            homes=homes,
            again=again,
            again_nodes=slots[again],
            ends=ends,
            nodes=nodes,
            texts=texts,
            rows=Rows.of(heads, slots, homes, again, ends, (size, nodes, texts)) if device.type == "cpu" else None,
        )


def attention(qkv: Tensor, places: Places, last: bool) -> Tensor:
    """What each node sees, [N, width], or each end, [E, width], if this is the last layer; from qkv [N, 3 · width]."""
    if places.rows is not None:
        return _CpuAttention.apply(qkv, places, places.rows, last)  # pyright: ignore
    shape = (places.blocks, -1, 3, places.heads, qkv.shape[1] // (3 * places.heads))
    q, k, v = qkv.index_select(0, places.slots).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=places.rounded_mask)
    return _at_homes(output, places, last)


def _at_homes(output: Tensor, places: Places, last: bool) -> Tensor:
    rows = output.transpose(1, 2).reshape(len(places.slots), -1)
    return rows.index_select(0, places.homes[places.ends] if last else places.homes)


class _CpuAttention(torch.autograd.Function):
    """Attention whose backward pass is made of plain batched products: the fused one takes three times as long."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, places: Places, rows: Rows, last: bool) -> Tensor:  # pyright: ignore
        parts = _parts(qkv, places, rows)
        q, k, v = parts.unbind(0)
        output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=places.rounded_mask
        )
        ctx.save_for_backward(parts, sums)
        ctx.places, ctx.rows, ctx.last = places, rows, last
        return _at_homes(output, places, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        parts, sums = ctx.saved_tensors
        places, rows = ctx.places, ctx.rows
        q, k, v = parts.flatten(1, 2).unbind(0)
        width = q.shape[-1]
        by_outputs = torch.cat([gradient, gradient.new_zeros(1, gradient.shape[1])]).view(-1, width)
        by_output = by_outputs.index_select(0, rows.outputs_of_ends if ctx.last else rows.outputs).view(q.shape)
        scale = width**-0.5
        weights = _weights(q, k, sums, places, scale)
        by_weights = torch.bmm(by_output, v.transpose(1, 2))
        by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        found = q.new_empty(3 * q.shape[0] * q.shape[1] + 1, width)
        found[-1] = 0
        by_q, by_k, by_v = found[:-1].view(3, *q.shape).unbind(0)
        torch.baddbmm(q, by_scores, k, beta=0, alpha=scale, out=by_q)
        torch.baddbmm(k, by_scores.transpose(1, 2), q, beta=0, alpha=scale, out=by_k)
        torch.bmm(weights.transpose(1, 2), by_output, out=by_v)
        by_qkv = found.index_select(0, rows.back).view(-1, 3 * places.heads * width)
        by_again = found.index_select(0, rows.again).view(-1, by_qkv.shape[1])
        return by_qkv.index_add_(0, places.again_nodes, by_again), None, None, None


def _parts(qkv: Tensor, places: Places, rows: Rows) -> Tensor:
    """Queries, keys and values by block and head, [3, B, heads, S, width of a head]."""
    width = qkv.shape[1] // (3 * places.heads)
    return qkv.view(-1, width).index_select(0, rows.parts.flatten()).view(*rows.parts.shape, width)


def _weights(q: Tensor, k: Tensor, sums: Tensor, places: Places, scale: float) -> Tensor:
    """Attention's weights, [B · heads, S, S], once more, from the logarithms of their sums, [B, heads, S].

    Large scores rounded to bf16 would be off by more than their differences. Less the logarithm of their sum, those
    that matter are small.
    """
    shape = (len(q), q.shape[1], q.shape[1])
    if q.dtype is torch.float32:
        mask = places.mask.expand(-1, places.heads, -1, -1).reshape(shape)
        return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    shifted = (places.rounded_mask - sums.to(q.dtype).contiguous()[..., None]).view(shape)
    return shifted.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)
