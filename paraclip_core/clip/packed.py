"""The forward and backward pass of CLIP's text transformer over a forest of prefixes.

The linear layers run over all nodes at once, without padding; attention runs in blocks of slots. Weights stay in fp32
and are cast once a pass, whatever the number of chunks; their gradients are added up in fp32. The residual stream is
fp32 in either precision, as under autocast.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from paraclip_core.clip.prefixes import Forest

__all__ = ["PackedTransformer", "packs", "weight_gradient"]

QUICK = 1.702
ROWS_OF_ONES = 16
"""One would do; products like multiples of 16."""


def packs(blocks: Iterable[nn.Module]) -> bool:
    """Whether all blocks are such that this module computes what they would: the plain ones, without dropout."""
    return all(_plain(block) for block in blocks)


def _plain(block: Any) -> bool:
    return (
        type(block) is ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_bias is not None
        and block.attn.batch_first
        and not (block.attn.dropout and block.training)
        and all(type(norm) is LayerNorm and norm.bias is not None for norm in (block.ln_1, block.ln_2))
        and all(type(scale) is nn.Identity for scale in (block.ls_1, block.ls_2))
        and type(block.mlp.gelu) in (nn.GELU, QuickGELU)
        and all(parameter.dtype is torch.float32 for parameter in block.parameters())
    )


class PackedTransformer:
    """The blocks of a transformer with their weights cast; good for as long as these do not change."""

    def __init__(self, blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
        """`dtype` is the arithmetic of the linear layers and of attention: float32 or bfloat16."""
        self._dtype = dtype
        self._blocks: list[Any] = list(blocks)
        layers = [layer for block in self._blocks for layer in _linears(block)]
        self._cast = [(weight.detach().to(dtype), bias.detach().to(dtype)) for weight, bias in layers]

    def __call__(self, x: Tensor, forest: Forest) -> Tensor:
        """Run the blocks; only the ends of texts leave the last one.

        Args:
            x: float32 [N, width], the nodes' embeddings.
            forest: the nodes, at least one.

        Returns:
            float32 [E, width], by ``forest.ends``.
        """
        places = _Places.of(forest, self._blocks[0].attn.num_heads, self._dtype, x.device)
        for number, block in enumerate(self._blocks):
            last = number == len(self._blocks) - 1
            into, out, up, down = self._cast[4 * number : 4 * number + 4]
            weights = _linears(block)
            qkv = _normed_linear(x, block.ln_1, weights[0], into)
            seen = _attention(qkv, places, last)
            x = _add_linear(x[places.ends] if last else x, seen, weights[1], out)
            hidden = _normed_linear(x, block.ln_2, weights[2], up)
            x = _add_linear(x, _activated(hidden, block.mlp.gelu), weights[3], down)
        return x


def _linears(block: Any) -> list[tuple[Tensor, Tensor]]:
    attn, mlp = block.attn, block.mlp
    return [
        (attn.in_proj_weight, attn.in_proj_bias),
        *((layer.weight, layer.bias) for layer in (attn.out_proj, mlp.c_fc, mlp.c_proj)),
    ]


def _normed_linear(x: Tensor, norm: LayerNorm, layer: tuple[Tensor, Tensor], cast: tuple[Tensor, Tensor]) -> Tensor:
    return _NormedLinear.apply(x, norm.weight, norm.bias, norm.eps, *layer, *cast)  # pyright: ignore


def _add_linear(x: Tensor, y: Tensor, layer: tuple[Tensor, Tensor], cast: tuple[Tensor, Tensor]) -> Tensor:
    return _AddLinear.apply(x, y, *layer, *cast)  # pyright: ignore


def _activated(x: Tensor, activation: nn.Module) -> Tensor:
    return _QuickGelu.apply(x) if isinstance(activation, QuickGELU) else activation(x)  # pyright: ignore


class _NormedLinear(torch.autograd.Function):
    """linear(layer norm(x)) in the arithmetic of the cast weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor,  # pyright: ignore
                low: Tensor, low_bias: Tensor) -> Tensor:  # fmt: skip
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], gain, shift, eps)
        normed = normed.to(low.dtype)
        ctx.save_for_backward(x, gain, shift, mean, deviation, normed, low)
        return F.linear(normed, low, low_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, gain, shift, mean, deviation, normed, low = ctx.saved_tensors
        needed = ctx.needs_input_grad
        by_weight, by_bias = _by_layer(normed, gradient, needed[4], needed[5])
        by_x: tuple[Tensor | None, ...] = (None, None, None)
        if any(needed[:3]):
            by_normed = (gradient @ low).float()
            by_x = torch.ops.aten.native_layer_norm_backward(
                by_normed, x, x.shape[-1:], mean, deviation, gain, shift, list(needed[:3])
            )
        return *by_x, None, by_weight, by_bias, None, None


class _AddLinear(torch.autograd.Function):
    """x + linear(y), where x is fp32 and the rest in the arithmetic of the cast weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, low: Tensor, low_bias: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(y, low)
        return F.linear(y, low, low_bias).float().add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        y, low = ctx.saved_tensors
        needed = ctx.needs_input_grad
        rounded = gradient.to(low.dtype)
        by_weight, by_bias = _by_layer(y, rounded, needed[2], needed[3])
        return gradient, rounded @ low if needed[1] else None, by_weight, by_bias, None, None


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a linear layer's weight, [out, into], from its input and its output's gradient."""
    if not _turns(x):
        return gradient.T @ x
    return (x.T.contiguous() @ gradient).T if x.shape[1] < gradient.shape[1] else gradient.T.contiguous() @ x


def _turns(x: Tensor) -> bool:
    # A CPU's bf16 kernels are slow with a left-hand side that is transposed, so the narrower side is turned round.
    return x.dtype is not torch.float32 and x.device.type == "cpu"


def _by_layer(x: Tensor, gradient: Tensor, weight: bool, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight and bias, in fp32."""
    width = x.shape[1]
    if weight and bias and _turns(x) and width < gradient.shape[1]:
        # A row of ones in the same product is quicker than a sum over the rows of a wide matrix.
        turned = x.new_zeros(width + ROWS_OF_ONES, len(x))
        turned[:width].copy_(x.T)
        turned[width] = 1
        both = turned @ gradient
        return both[:width].T.float(), both[width].float()
    by_bias = (gradient.new_ones(1, len(gradient)) @ gradient)[0].float() if bias else None
    return weight_gradient(x, gradient).float() if weight else None, by_bias


class _QuickGelu(torch.autograd.Function):
    """x · sigmoid(1.702 x), by the kernel for x · sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x)
        return F.silu(x * QUICK).mul_(1 / QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, x * QUICK)


@dataclass(frozen=True)
class _Places:
    """Where attention finds what, on a device."""

    heads: int
    blocks: int
    mask: Tensor
    """0 or -inf, float32 [B, 1, S, S]."""
    rounded_mask: Tensor
    """The same in the arithmetic of attention."""
    slots: Tensor
    homes: Tensor
    homes_of_ends: Tensor
    again: Tensor
    again_nodes: Tensor
    ends: Tensor

    @classmethod
    def of(cls, forest: Forest, heads: int, dtype: torch.dtype, device: torch.device) -> _Places:
        def on_device(indices: Any) -> Tensor:
            return torch.from_numpy(indices).to(device)

        seen = on_device(forest.seen)
        mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))[:, None]
        return cls(
            heads=heads,
            blocks=len(forest.seen),
            mask=mask,
            rounded_mask=mask.to(dtype),
            slots=on_device(forest.slots),
            homes=on_device(forest.homes),
            homes_of_ends=on_device(forest.homes[forest.ends]),
            again=on_device(forest.again),
            again_nodes=on_device(forest.slots[forest.again]),
            ends=on_device(forest.ends),
        )


def _attention(qkv: Tensor, places: _Places, last: bool) -> Tensor:
    homes = places.homes_of_ends if last else places.homes
    if qkv.device.type == "cpu":
        return _CpuAttention.apply(qkv, places, homes)  # pyright: ignore
    q, k, v = _by_heads(qkv.index_select(0, places.slots), 3, places).unbind(0)
    return _by_rows(F.scaled_dot_product_attention(q, k, v, attn_mask=places.rounded_mask)).index_select(0, homes)


def _by_heads(rows: Tensor, parts: int, places: _Places) -> Tensor:
    """[B · S, parts · width] to [parts, B, heads, S, width of a head], without copying."""
    shape = (places.blocks, len(rows) // places.blocks, parts, places.heads, -1)
    return rows.view(shape).permute(2, 0, 3, 1, 4)


def _by_rows(output: Tensor) -> Tensor:
    blocks, heads, size, width = output.shape
    return output.transpose(1, 2).reshape(blocks * size, heads * width)


class _CpuAttention(torch.autograd.Function):
    """Attention whose backward pass is made of plain batched products: the fused one takes three times as long."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, places: _Places, homes: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(qkv)
        ctx.places, ctx.homes = places, homes
        q, k, v = _by_heads(qkv.index_select(0, places.slots), 3, places).unbind(0)
        with _fused():
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=places.rounded_mask)
        return _by_rows(output).index_select(0, homes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (qkv,) = ctx.saved_tensors
        places: _Places = ctx.places
        parts = _by_heads(qkv.index_select(0, places.slots), 3, places)
        _, blocks, heads, size, width = parts.shape
        q, k, v = parts.reshape(3, blocks * heads, size, width).unbind(0)
        by_rows = gradient.new_zeros(len(places.slots), heads * width).index_copy_(0, ctx.homes, gradient)
        by_output = _by_heads(by_rows, 1, places).reshape(blocks * heads, size, width)
        scale = width**-0.5
        # Rounded to bf16, large scores would be off by more than their differences.
        mask = places.mask.expand(blocks, heads, size, size).reshape(blocks * heads, size, size)
        scores = torch.baddbmm(mask, q.float(), k.float().transpose(1, 2), alpha=scale)
        weights = scores.softmax(-1).to(qkv.dtype)
        by_weights = torch.bmm(by_output, v.transpose(1, 2))
        by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        products = (
            torch.baddbmm(q, by_scores, k, beta=0, alpha=scale),
            torch.baddbmm(k, by_scores.transpose(1, 2), q, beta=0, alpha=scale),
            torch.bmm(weights.transpose(1, 2), by_output),
        )
        found = qkv.new_empty(blocks, size, 3, heads, width)
        for number, product in enumerate(products):
            found[:, :, number] = product.view(blocks, heads, size, width).transpose(1, 2)
        rows = found.view(blocks * size, -1)
        by_qkv = rows.index_select(0, places.homes)
        return by_qkv.index_add_(0, places.again_nodes, rows.index_select(0, places.again)), None, None


def _fused() -> AbstractContextManager[Any]:
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
