"""A causal text encoder over a prefix trie, forward and backward.

Linear layers run over all nodes at once, attention in blocks of slots. Weights stay in fp32 and are cast once per pass;
their gradients are summed in fp32. The residual stream is fp32 in either precision, as under autocast. On a CPU each
step of attention is one batched product or one pass over memory: a head's rows are gathered directly into the order of
the products, and their results directly back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paraclip_core.clip.ragged import PrefixTrie, Ragged, alphabetical, prefix_trie, trie_chunks


@dataclass(frozen=True)
class PackedTextEncoder:
    """A causal text encoder of open_clip that computes shared prefixes of texts once."""

    encoder: Any
    pool: str
    """open_clip's pooling: argmax, eos or first."""
    end: int | None
    """End token; for `eos` pooling."""
    project: Callable[[Tensor], Tensor]
    """The encoder's projection into the shared space."""

    def encode(self, texts: Ragged, chunk_tokens: int, dtype: torch.dtype) -> tuple[NDArray[np.int64], list[Tensor]]:
        """Encode in chunks of at most `chunk_tokens` nodes.

        Returns the order in which the texts were encoded, [n], and the unnormalized embeddings of each chunk,
        [·, embed_dim].
        """
        texts = self._cut(texts)
        order = alphabetical(texts)
        texts = texts.take(order)
        # The weights are cast once for all chunks.
        transformer = PackedTransformer(self.encoder.transformer.resblocks, dtype)
        tries = (prefix_trie(texts.take(np.arange(c.start, c.stop))) for c in trie_chunks(texts, chunk_tokens))
        return order, [self._forward(transformer, trie) for trie in tries]

    def _cut(self, texts: Ragged) -> Ragged:
        """The texts up to the pooled token."""
        ids = texts.padded(pad=-1)
        pooled_ids = ids == self.end if self.pool == "eos" else ids
        pooled = np.zeros(len(ids), np.int64) if self.pool == "first" else pooled_ids.argmax(1)
        inside = np.arange(ids.shape[1]) <= pooled[:, None]
        return Ragged(ids[inside].astype(texts.values.dtype), np.concatenate([[0], np.cumsum(pooled + 1)]))

    def _forward(self, transformer: PackedTransformer, trie: PrefixTrie) -> Tensor:
        table: Tensor = self.encoder.positional_embedding
        tokens, positions, text_ends = (
            torch.from_numpy(part).to(table.device) for part in (trie.tokens, trie.positions, trie.text_ends)
        )
        x = self.encoder.token_embedding(tokens) + F.embedding(positions, table)
        return self.project(self.encoder.ln_final(transformer(x, trie))).index_select(0, text_ends)


def packed_text_encoder(
    encoder: Any, pool: str, end: int | None, project: Callable[[Tensor], Tensor]
) -> PackedTextEncoder | None:
    """The packed version of a causal text encoder; None if it has parts that :class:`PackedTransformer` lacks."""
    plain = all(map(_plain, encoder.transformer.resblocks))
    return PackedTextEncoder(encoder, pool, end, project) if plain else None


Cast = tuple[Tensor, Tensor | None]

QUICK = 1.702
ONES = 16
"""Columns of ones appended to the input of a wide layer, for its bias. Products are fast at multiples of 16."""


def _plain(block: Any) -> bool:
    return (
        type(block) is ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_bias is not None
        and block.attn.batch_first
        and all(type(norm) is LayerNorm and norm.bias is not None for norm in (block.ln_1, block.ln_2))
        and all(type(scale) is nn.Identity for scale in (block.ls_1, block.ls_2))
        and type(block.mlp.gelu) in (nn.GELU, QuickGELU)
    )


class PackedTransformer:
    """A transformer's blocks with their weights cast; valid until the weights change."""

    def __init__(self, blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
        """`dtype` is the precision of the linear layers and of attention: float32 or bfloat16."""
        self._dtype = dtype
        self._blocks: list[Any] = list(blocks)
        layers = [layer for block in self._blocks for layer in _linears(block)]
        self._cast = [_cast(*layer, dtype, beside=number % 2 == 0) for number, layer in enumerate(layers)]

    def __call__(self, x: Tensor, trie: PrefixTrie) -> Tensor:
        """Map the nodes' embeddings, float32 [N, width], to the ends of texts (``trie.ends``), float32 [E, width]."""
        layout = TrieLayout.of(trie, self._blocks[0].attn.num_heads, self._dtype, x.device)
        x = F.pad(x, (0, 0, 0, len(layout.primary_slot) - len(x)))
        for number, block in enumerate(self._blocks):
            last = number == len(self._blocks) - 1
            into, out, up, down = self._cast[4 * number : 4 * number + 4]
            weights = _linears(block)
            qkv = _normed_linear(x, block.ln_1, weights[0], into)
            attended = attention(qkv, layout, last)
            x = _add_linear(x[layout.ends] if last else x, attended, weights[1], out)
            hidden = _normed_linear(x, block.ln_2, weights[2], up)
            x = _add_linear(x, _activated(hidden, block.mlp.gelu), weights[3], down)
        return x[: layout.end_count]


def _linears(block: Any) -> list[tuple[Tensor, Tensor]]:
    attn, mlp = block.attn, block.mlp
    return [
        (attn.in_proj_weight, attn.in_proj_bias),
        *((layer.weight, layer.bias) for layer in (attn.out_proj, mlp.c_fc, mlp.c_proj)),
    ]


def _cast(weight: Tensor, bias: Tensor, dtype: torch.dtype, *, beside: bool) -> Cast:
    """A layer in `dtype`; with its bias as an extra column of the weight if that is requested and faster."""
    low, low_bias = weight.detach().to(dtype), bias.detach().to(dtype)
    if not (beside and _transposes(low)):
        return low, low_bias
    return torch.cat([low, low_bias[:, None], low.new_zeros(len(low), ONES - 1)], 1), None


def _normed_linear(x: Tensor, norm: LayerNorm, layer: tuple[Tensor, Tensor], cast: Cast) -> Tensor:
    return _NormedLinear.apply(x, norm.weight, norm.bias, norm.eps, *layer, *cast)  # pyright: ignore


def _add_linear(x: Tensor, y: Tensor, layer: tuple[Tensor, Tensor], cast: Cast) -> Tensor:
    return _AddLinear.apply(x, y, *layer, *cast)  # pyright: ignore


def _activated(x: Tensor, activation: nn.Module) -> Tensor:
    return _QuickGelu.apply(x) if isinstance(activation, QuickGELU) else activation(x)  # pyright: ignore


class _NormedLinear(torch.autograd.Function):
    """linear(layer norm(x)) in the precision of the cast weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float,  # pyright: ignore
                weight: Tensor, bias: Tensor, low: Tensor, low_bias: Tensor | None) -> Tensor:  # fmt: skip
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        normed = normed.to(low.dtype) if low_bias is not None else _beside_ones(normed, low.dtype)
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, deviation, normed, low)
        return F.linear(normed, low, low_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, norm_weight, norm_bias, mean, deviation, normed, low = ctx.saved_tensors
        needed, width = ctx.needs_input_grad, x.shape[1]
        if normed.shape[1] > width:
            grad_weight, grad_bias = _joint_gradients(normed, grad_output, width) if any(needed[4:6]) else (None, None)
        else:
            grad_weight, grad_bias = _layer_gradients(normed, grad_output, needed[4], needed[5])
        grad_norm: tuple[Tensor | None, ...] = (None, None, None)
        if any(needed[:3]):
            grad_normed = (grad_output @ low[:, :width]).float()
            grad_norm = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x, x.shape[-1:], mean, deviation, norm_weight, norm_bias, list(needed[:3])
            )
        return *grad_norm, None, grad_weight, grad_bias, None, None


def _beside_ones(x: Tensor, dtype: torch.dtype) -> Tensor:
    # With the bias in the same product nothing is copied or added, and its gradient is computed with the weight's.
    wide = x.new_empty(len(x), x.shape[1] + ONES, dtype=dtype)
    wide[:, : x.shape[1]] = x
    wide[:, x.shape[1] :] = 1
    return wide


def _joint_gradients(x: Tensor, grad_output: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, in fp32, from a layer's input with appended ones."""
    both = x.T.contiguous() @ grad_output
    # A parameter's gradient has the parameter's layout; transposing it before it is fp32 moves half the bytes.
    return both[:width].T.contiguous().float(), both[width].float()


class _AddLinear(torch.autograd.Function):
    """x + linear(y), where x is fp32 and the rest in the precision of the cast weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, low: Tensor, low_bias: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(y, low)
        return F.linear(y, low, low_bias).float().add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        y, low = ctx.saved_tensors
        needed = ctx.needs_input_grad
        rounded = grad_output.to(low.dtype)
        grad_weight, grad_bias = _layer_gradients(y, rounded, needed[2], needed[3])
        return grad_output, rounded @ low if needed[1] else None, grad_weight, grad_bias, None, None


def _layer_gradients(x: Tensor, grad_output: Tensor, weight: bool, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight and bias, in fp32, if requested."""
    grad_bias = (grad_output.new_ones(1, len(grad_output)) @ grad_output)[0].float() if bias else None
    return weight_gradient(x, grad_output).float() if weight else None, grad_bias


def weight_gradient(x: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient of a linear layer's weight, [out, in], from its input [n, in] and its output's gradient [n, out]."""
    if not _transposes(x):
        return grad_output.T @ x
    if x.shape[1] < grad_output.shape[1]:
        return (x.T.contiguous() @ grad_output).T
    return grad_output.T.contiguous() @ x


def _transposes(x: Tensor) -> bool:
    # A CPU's bf16 kernels are slow with a transposed left-hand side, so the narrower side is transposed beforehand.
    return x.dtype is not torch.float32 and x.device.type == "cpu"


class _QuickGelu(torch.autograd.Function):
    """x · sigmoid(1.702 x), by the kernel for x · sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x)
        return F.silu(x * QUICK).mul_(1 / QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad_output, x * QUICK)


STEPS = 16
"""Number of sizes between a power of two and the next."""


def padded_count(count: int, dtype: torch.dtype, device: torch.device) -> int:
    """`count` rows (at least one), rounded up by at most 1/16 if kernels are built per shape.

    A CPU's bf16 kernels take ten milliseconds to build per shape, and every group of texts has its own.
    """
    if dtype is torch.float32 or device.type != "cpu":
        return count
    step = max(1, 2 ** (count - 1).bit_length() // (2 * STEPS))
    return -(-count // step) * step


@dataclass(frozen=True)
class HeadRows:
    """Indices, int32, for gathering rows that are one head wide; the row after the last one is zero."""

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
    """The same in the precision of attention."""
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
    """Only on a CPU."""

    @classmethod
    def of(cls, trie: PrefixTrie, heads: int, dtype: torch.dtype, device: torch.device) -> TrieLayout:
        """Lay out a trie for attention in `dtype`."""

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

    Rounding large scores to bf16 would lose their differences. After subtracting the logarithm of their sum, the
    scores that matter are small.
    """
    shape = (len(q), q.shape[1], q.shape[1])
    if q.dtype is torch.float32:
        mask = layout.mask.expand(-1, layout.heads, -1, -1).reshape(shape)
        return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    shifted = (layout.rounded_mask - sums.to(q.dtype).contiguous()[..., None]).view(shape)
    return shifted.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)
