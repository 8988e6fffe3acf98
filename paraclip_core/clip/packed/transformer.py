"""The forward and backward pass of CLIP's text transformer over a prefix trie.

Linear layers run over all nodes at once, attention in blocks of slots. Weights stay in fp32 and are cast once a pass;
their gradients are summed in fp32. The residual stream is fp32 in either precision, as under autocast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paraclip_core.clip.packed.attention import TrieLayout, attention
from paraclip_core.clip.packed.trie import PrefixTrie

Cast = tuple[Tensor, Tensor | None]

QUICK = 1.702
ONES = 16
"""Columns of ones beside the input of a wide layer, for its bias. Products are fast at multiples of 16."""


def packs(blocks: Iterable[nn.Module]) -> bool:
    """Whether this module computes these blocks: plain ones, without dropout that acts."""
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
    """A transformer's blocks with their weights cast; valid until the weights change."""

    def __init__(self, blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
        """`dtype` is the arithmetic of the linear layers and of attention: float32 or bfloat16."""
        self._dtype = dtype
        self._blocks: list[Any] = list(blocks)
        layers = [layer for block in self._blocks for layer in _linears(block)]
        self._cast = [_cast(*layer, dtype, beside=number % 2 == 0) for number, layer in enumerate(layers)]

    def __call__(self, x: Tensor, trie: PrefixTrie) -> Tensor:
        """Run the blocks; the last one gives the ends of texts only.

        Args:
            x: float32 [N, width], the nodes' embeddings.
            trie: the nodes, at least one.

        Returns:
            float32 [E, width], by ``trie.ends``.
        """
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
    """A layer in `dtype`; with its bias as a column beside the weight if that is wanted and faster."""
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
    """linear(layer norm(x)) in the arithmetic of the cast weights."""

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
    # With the bias in the same product nothing is copied or added; its gradient comes with the weight's.
    wide = x.new_empty(len(x), x.shape[1] + ONES, dtype=dtype)
    wide[:, : x.shape[1]] = x
    wide[:, x.shape[1] :] = 1
    return wide


def _joint_gradients(x: Tensor, grad_output: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, in fp32, from a layer's input beside ones."""
    both = x.T.contiguous() @ grad_output
    # A parameter's gradient has the parameter's layout; transposing it before it is fp32 moves half the bytes.
    return both[:width].T.contiguous().float(), both[width].float()


class _AddLinear(torch.autograd.Function):
    """x + linear(y), where x is fp32 and the rest in the arithmetic of the cast weights."""

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
    """Gradients of a linear layer's weight and bias, in fp32, where they are wanted."""
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
