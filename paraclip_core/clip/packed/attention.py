"""Attention over a prefix trie, in blocks of slots, forward and backward.

On a CPU each step is one batched product or one pass over memory: a head's rows are gathered straight into the order of
the products, and their results straight back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paraclip_core.clip.packed.trie import PrefixTrie

STEPS = 16
"""Number of sizes between a power of two and the next."""


def padded_count(count: int, dtype: torch.dtype, device: torch.device) -> int:
    """`count` rows (at least one), rounded up by 1/16 at most where kernels are built for each shape.

    A CPU's bf16 kernels take ten milliseconds to build for a shape, and every group of texts has its own.
    """
    if dtype is torch.float32 or device.type != "cpu":
        return count
    step = max(1, 2 ** (count - 1).bit_length() // (2 * STEPS))
    return -(-count // step) * step


@dataclass(frozen=True)
class HeadRows:
    """Where to gather rows that are one head wide, int32; the row after the last one is zero."""

    parts: Tensor
    """[3, B, heads, S]: rows of queries, keys and values among [N, 3, heads]."""
    grad_nodes: Tensor
    """[N, 3, heads]: rows of the nodes' gradients among [3, B, heads, S]."""
    grad_extra: Tensor
    """[A, 3, heads]: those of the extra slots."""
    grad_outputs: Tensor
    """[B, heads, S]: rows of the slots' output gradients among [N, heads]."""
    grad_ends: Tensor
    """[B, heads, S]: the same among [E, heads], for the last layer."""

    @classmethod
    def of(
        cls, heads: int, slots: Tensor, primary: Tensor, extra: Tensor, ends: Tensor, sizes: tuple[int, int, int]
    ) -> HeadRows:
        """From the fields of :class:`TrieLayout`; `sizes` are S, and the nodes and ends before padding."""
        size, nodes, end_count = sizes
        head, part = torch.arange(heads), torch.arange(3)[:, None]
        by_block = slots.view(-1, 1, size)
        blocks = len(by_block)

        def grad_rows(of: Tensor) -> Tensor:
            return ((part * blocks + (of // size)[:, None, None]) * heads + head) * size + (of % size)[:, None, None]

        def output_rows(of: Tensor, count: int) -> Tensor:
            node = torch.full((len(slots),), len(of)).index_copy_(0, of[:count], torch.arange(count))
            return node.view(-1, 1, size) * heads + head[:, None]

        grad_nodes = grad_rows(primary)
        grad_nodes[nodes:] = 3 * len(slots) * heads
        return cls(
            parts=((by_block * 3 + part[:, None, None]) * heads + head[:, None]).int(),
            grad_nodes=grad_nodes.flatten().int(),
            grad_extra=grad_rows(extra).flatten().int(),
            grad_outputs=output_rows(primary, nodes).flatten().int(),
            grad_ends=output_rows(primary[ends], end_count).flatten().int(),
        )


@dataclass(frozen=True)
class TrieLayout:
    """A trie on a device; N nodes, B blocks of S slots and E ends after padding."""

    blocks: int
    heads: int
    mask: Tensor
    """0 or -inf, float32 [B, 1, S, S]."""
    rounded_mask: Tensor
    """The same in the arithmetic of attention."""
    slot_nodes: Tensor
    """Node of each slot, [B · S]."""
    primary_slot: Tensor
    """Slot of each node, [N]."""
    extra_nodes: Tensor
    """Nodes of the extra slots, [A]."""
    ends: Tensor
    """Nodes where texts end, [E]; padding repeats the first node."""
    node_count: int
    """Nodes before padding."""
    end_count: int
    """Ends before padding."""
    rows: HeadRows | None
    """On a CPU."""

    @classmethod
    def of(cls, trie: PrefixTrie, heads: int, dtype: torch.dtype, device: torch.device) -> TrieLayout:
        """Lay a trie out for an attention in `dtype`."""

        def on_device(indices: Any, count: int | None = None) -> Tensor:
            tensor = torch.from_numpy(indices)
            return (tensor if count is None else F.pad(tensor, (0, count - len(tensor)))).to(device)

        blocks, size, _ = trie.mask.shape
        nodes, end_count = len(trie.tokens), len(trie.ends)
        all_blocks, all_nodes, all_ends = (padded_count(count, dtype, device) for count in (blocks, nodes, end_count))
        mask = torch.zeros(all_blocks, size, size, device=device)
        mask[:blocks].masked_fill_(~on_device(trie.mask), float("-inf"))
        slots, primary = on_device(trie.slot_nodes, all_blocks * size), on_device(trie.primary_slot, all_nodes)
        ends, extra = on_device(trie.ends, all_ends), on_device(trie.extra_slots)
        sizes = (size, nodes, end_count)
        return cls(
            blocks=all_blocks,
            heads=heads,
            mask=mask[:, None],
            rounded_mask=mask[:, None].to(dtype),
            slot_nodes=slots,
            primary_slot=primary,
            extra_nodes=slots[extra],
            ends=ends,
            node_count=nodes,
            end_count=end_count,
            rows=HeadRows.of(heads, slots, primary, extra, ends, sizes) if device.type == "cpu" else None,
        )


def attention(qkv: Tensor, layout: TrieLayout, last: bool) -> Tensor:
    """Output for each node, [N, width], or in the last layer for each end, [E, width]; qkv is [N, 3 · width]."""
    if layout.rows is not None:
        return _CpuAttention.apply(qkv, layout, layout.rows, last)  # pyright: ignore
    shape = (layout.blocks, -1, 3, layout.heads, qkv.shape[1] // (3 * layout.heads))
    q, k, v = qkv.index_select(0, layout.slot_nodes).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.rounded_mask)
    return _node_rows(output, layout, last)


def _node_rows(output: Tensor, layout: TrieLayout, last: bool) -> Tensor:
    rows = output.transpose(1, 2).reshape(len(layout.slot_nodes), -1)
    return rows.index_select(0, layout.primary_slot[layout.ends] if last else layout.primary_slot)


class _CpuAttention(torch.autograd.Function):
    """Attention with a backward pass of plain batched products: the fused one takes three times as long."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: TrieLayout, rows: HeadRows, last: bool) -> Tensor:  # pyright: ignore
        width = qkv.shape[1] // (3 * layout.heads)
        # Queries, keys and values by block and head, [3, B, heads, S, width of a head].
        parts = qkv.view(-1, width).index_select(0, rows.parts.flatten()).view(*rows.parts.shape, width)
        q, k, v = parts.unbind(0)
        output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=layout.rounded_mask
        )
        ctx.save_for_backward(parts, sums)
        ctx.layout, ctx.rows, ctx.last = layout, rows, last
        return _node_rows(output, layout, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nodes: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        parts, sums = ctx.saved_tensors
        layout, rows = ctx.layout, ctx.rows
        q, k, v = parts.flatten(1, 2).unbind(0)
        width = q.shape[-1]
        grad_rows = torch.cat([grad_nodes, grad_nodes.new_zeros(1, grad_nodes.shape[1])]).view(-1, width)
        grad_output = grad_rows.index_select(0, rows.grad_ends if ctx.last else rows.grad_outputs).view(q.shape)
        scale = width**-0.5
        weights = _weights(q, k, sums, layout, scale)
        grad_weights = torch.bmm(grad_output, v.transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_parts = q.new_empty(3 * q.shape[0] * q.shape[1] + 1, width)
        grad_parts[-1] = 0
        grad_q, grad_k, grad_v = grad_parts[:-1].view(3, *q.shape).unbind(0)
        torch.baddbmm(q, grad_scores, k, beta=0, alpha=scale, out=grad_q)
        torch.baddbmm(k, grad_scores.transpose(1, 2), q, beta=0, alpha=scale, out=grad_k)
        torch.bmm(weights.transpose(1, 2), grad_output, out=grad_v)
        grad_qkv = grad_parts.index_select(0, rows.grad_nodes).view(-1, 3 * layout.heads * width)
        grad_extra = grad_parts.index_select(0, rows.grad_extra).view(-1, grad_qkv.shape[1])
        return grad_qkv.index_add_(0, layout.extra_nodes, grad_extra), None, None, None


def _weights(q: Tensor, k: Tensor, sums: Tensor, layout: TrieLayout, scale: float) -> Tensor:
    """Attention's weights, [B · heads, S, S], recomputed from the logarithms of their sums, [B, heads, S].

    Large scores rounded to bf16 would be off by more than their differences. Less the logarithm of their sum, those
    that matter are small.
    """
    shape = (len(q), q.shape[1], q.shape[1])
    if q.dtype is torch.float32:
        mask = layout.mask.expand(-1, layout.heads, -1, -1).reshape(shape)
        return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    shifted = (layout.rounded_mask - sums.to(q.dtype).contiguous()[..., None]).view(shape)
    return shifted.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)
