"""The hand-written operations of ``clip/packed`` and the losses against plain PyTorch, each alone.

Both sides run forward and backward in bf16, with the shapes of a step: the nodes of its prefix trie, the width of its
tower. The plain side is what open_clip does under autocast.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from bench_train import KINDS, Bench
from open_clip.loss import ClipLoss
from open_clip.transformer import QuickGELU
from torch import Tensor
from torch.nn import functional

from paraclip_core.clip.packed import Ragged, alphabetical, prefix_trie, weight_gradient
from paraclip_core.clip.packed.attention import TrieLayout, attention
from paraclip_core.clip.packed.transformer import _activated, _add_linear, _cast, _normed_linear
from paraclip_core.training.losses import info_nce

REPEAT = 7
GROUP_TEXTS = 128
"""Texts that a step computes together; it cuts its batch into such groups."""
LOW = torch.bfloat16


def compare_kernels(bench: Bench, clock: Callable[[], float]) -> Iterator[tuple[str, float, float]]:
    """Name, our seconds and plain PyTorch's of each operation."""
    for name, ours, plain in (*_linears(bench), *_attentions(bench), *_losses(bench)):
        yield name, _seconds(ours, bench.clip.device, clock), _seconds(plain, bench.clip.device, clock)


def _seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Median time of a call, the first two left out."""
    times = []
    for _ in range(REPEAT + 2):
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return statistics.median(times[2:])


Comparison = tuple[str, Callable[[], object], Callable[[], object]]


def _linears(bench: Bench) -> Iterator[Comparison]:
    block = bench.model.transformer.resblocks[0]
    device, width = bench.clip.device, block.mlp.c_fc.in_features
    rows = len(prefix_trie(_group(bench)).tokens)
    qkv, down = (block.attn.in_proj_weight, block.attn.in_proj_bias), (block.mlp.c_proj.weight, block.mlp.c_proj.bias)
    x = torch.randn(rows, width, device=device, requires_grad=True)
    wide = torch.randn(rows, 4 * width, device=device).to(LOW).requires_grad_()
    low_qkv, low_down = _cast(*qkv, LOW, beside=True), _cast(*down, LOW, beside=False)
    grad_qkv = torch.randn(rows, 3 * width, device=device).to(LOW)
    grad_x = torch.randn(rows, width, device=device)
    norm = block.ln_1

    def plain_norm() -> None:
        with torch.autocast(device.type, LOW):
            normed = functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
            functional.linear(normed, *qkv).backward(grad_qkv)

    def plain_add() -> None:
        with torch.autocast(device.type, LOW):
            (x + functional.linear(wide, *down)).backward(grad_x)

    yield "layer norm and linear", lambda: _normed_linear(x, norm, qkv, low_qkv).backward(grad_qkv), plain_norm
    yield "linear and residual", lambda: _add_linear(x, wide, down, low_down).backward(grad_x), plain_add
    gelu, low_x = QuickGELU(), x.detach().to(LOW)
    yield "weight gradient", lambda: weight_gradient(low_x, grad_qkv), lambda: grad_qkv.T @ low_x
    yield "QuickGELU", lambda: _activated(wide, gelu).backward(wide), lambda: gelu(wide).backward(wide)


def _attentions(bench: Bench) -> Iterator[Comparison]:
    device, heads = bench.clip.device, bench.model.transformer.resblocks[0].attn.num_heads
    width = bench.model.token_embedding.weight.shape[1]
    texts = _group(bench)
    layout = TrieLayout.of(prefix_trie(texts), heads, LOW, device)
    qkv = torch.randn(len(layout.primary_slot), 3 * width, device=device).to(LOW).requires_grad_()
    grad = torch.randn(len(layout.primary_slot), width, device=device).to(LOW)
    shape = (3, len(texts), heads, int(texts.lengths.max()), width // heads)
    padded = torch.randn(shape, device=device).to(LOW).requires_grad_()
    grad_padded = torch.randn(shape[1:], device=device).to(LOW)

    def causal() -> None:
        q, k, v = padded.unbind(0)
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad_padded)

    def packed() -> None:
        attention(qkv, layout, False).backward(grad)

    yield "attention over the trie, plain: causal over padded texts", packed, causal
    if layout.rows is not None:
        fused = replace(layout, rows=None)
        yield (
            "attention's own backward on a CPU, plain: the fused one",
            packed,
            lambda: attention(qkv, fused, False).backward(grad),
        )


def _losses(bench: Bench) -> Iterator[Comparison]:
    device, loss = bench.clip.device, ClipLoss()
    first, second = (
        functional.normalize(torch.randn(bench.batch, bench.clip.embed_dim, device=device), dim=-1).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(14.3, device=device)

    def plain() -> None:
        value = loss(first, second, scale)
        assert isinstance(value, Tensor)
        value.backward()

    yield "InfoNCE", lambda: info_nce(first, second, scale).backward(), plain


def _group(bench: Bench) -> Ragged:
    batch = bench.rows.take(bench.indices(0), KINDS)
    texts = Ragged.concatenate([batch.texts[kind] for kind in KINDS])
    texts = texts.take(alphabetical(texts))
    return texts.take(range(min(GROUP_TEXTS, len(texts))))
