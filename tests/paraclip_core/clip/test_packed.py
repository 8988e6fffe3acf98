"""Encoding over shared prefixes against encoding text by text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from paraclip_core.clip import encode
from paraclip_core.clip.encode import TextEncoder, encode_ragged, text_encoder
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import TrieLayout, attention, padded_count, weight_gradient
from paraclip_core.clip.ragged import PrefixTrie, Ragged, alphabetical, prefix_trie

Tiny = Callable[..., ClipModel]
START, END = 49406, 49407


def texts(count: int = 60, words: int = 4, longest: int = 12) -> Ragged:
    """Few words, so that many texts share a prefix or are the same."""
    drawn = np.random.RandomState(0)
    lists = [[START, *drawn.randint(1, words, drawn.randint(1, longest)), END] for _ in range(count)]
    return Ragged.from_lists(lists)


def unpacked(clip: ClipModel) -> TextEncoder:
    return replace(text_encoder(clip), packed=None)


def gradients(clip: ClipModel, tokens: Ragged, precision: str = "fp32") -> dict[str, torch.Tensor]:
    target = torch.randn(len(tokens), clip.embed_dim, generator=torch.Generator().manual_seed(3))
    clip.model.zero_grad(set_to_none=True)
    (encode_ragged(clip, tokens, precision=precision) * target).sum().backward()  # type: ignore[arg-type]
    by_name = {n: p.grad.clone() for n, p in clip.model.named_parameters() if p.grad is not None}
    clip.model.zero_grad(set_to_none=True)
    return by_name


def distance(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    apart = torch.cat([(gradients[name] - value).flatten() for name, value in expected.items()])
    return float(apart.norm() / torch.cat([value.flatten() for value in expected.values()]).norm())


@pytest.mark.parametrize("quick", [False, True])
def test_bf16_gradients_are_as_near_as_autocasts(tiny: Tiny, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, tokens = tiny(quick_gelu=quick), texts()
    assert text_encoder(clip).packed is not None
    with torch.no_grad():
        for name, parameter in clip.model.named_parameters():
            # Weights as large as the other tests' make so much of a rounding that it is a matter of luck who has more.
            if "resblocks" in name and parameter.ndim > 1:
                parameter.div_(3)
    packed, rough = gradients(clip, tokens), gradients(clip, tokens, "bf16")
    monkeypatch.setattr(encode, "text_encoder", unpacked)
    exact, autocast = gradients(clip, tokens), gradients(clip, tokens, "bf16")
    assert packed.keys() == rough.keys() == exact.keys()
    assert distance(packed, exact) < 1e-5
    assert 1e-4 < distance(rough, exact) < 1.2 * distance(autocast, exact)


def test_frozen_parameters_take_no_gradients(tiny: Tiny) -> None:
    clip, tokens = tiny(), texts()
    whole = gradients(clip, tokens)
    trained = [name for name in whole if ".1.mlp" in name or "ln_1.bias" in name or "in_proj_weight" in name]
    for name, parameter in clip.model.named_parameters():
        parameter.requires_grad_(name in trained)
    some = gradients(clip, tokens)
    assert sorted(some) == sorted(trained) and len(trained) >= 6
    for name, value in some.items():
        assert torch.equal(value, whole[name]), name


def test_other_blocks_take_the_old_way(tiny: Tiny) -> None:
    clip = tiny()
    assert text_encoder(clip).packed is not None
    clip.model.get_submodule("transformer.resblocks.0").mlp.gelu = torch.nn.Sequential(torch.nn.GELU())  # type: ignore[union-attr, assignment]
    assert text_encoder(clip).packed is None


@pytest.mark.parametrize(("into", "out"), [(32, 96), (96, 32), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient(into: int, out: int, dtype: torch.dtype) -> None:
    x, gradient = torch.randn(50, into, dtype=dtype), torch.randn(50, out, dtype=dtype)
    torch.testing.assert_close(weight_gradient(x, gradient).float(), (gradient.T @ x).float(), rtol=2e-2, atol=2e-2)


def drawn_trie() -> PrefixTrie:
    drawn = texts(150)
    return prefix_trie(drawn.take(alphabetical(drawn)), 32)


def attended(qkv: torch.Tensor, layout: TrieLayout, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    count = layout.end_count if last else layout.node_count
    qkv = torch.nn.functional.pad(qkv, (0, 0, 0, len(layout.primary_slot) - len(qkv))).requires_grad_()
    output = attention(qkv, layout, last)
    weights = torch.zeros(output.shape)
    weights[:count] = torch.randn(count, output.shape[1], generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((output.float() * weights).sum(), qkv)
    assert not gradient[layout.node_count :].any()
    return output[:count].detach().float(), gradient[: layout.node_count].float()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [1, 12])
def test_attention_on_a_cpu_is_attention_elsewhere(last: bool, size: float) -> None:
    trie = drawn_trie()
    drawn = torch.randn(len(trie.tokens), 96, generator=torch.Generator().manual_seed(0)) * size
    drawn = drawn.bfloat16().float()
    exact = TrieLayout.of(trie, 2, torch.float32, torch.device("cpu"))
    expected = attended(drawn, replace(exact, rows=None), last)
    for output, value in zip(attended(drawn, exact, last), expected, strict=True):
        torch.testing.assert_close(output, value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
    # Scores of some hundreds, where the weights are sharp, are off by 1 when they are rounded to bf16.
    rounded = attended(drawn.bfloat16(), TrieLayout.of(trie, 2, torch.bfloat16, torch.device("cpu")), last)
    for output, value in zip(rounded, expected, strict=True):
        assert float((output - value).norm() / value.norm()) < 0.01


def test_sizes_are_rounded_to_few_in_bf16_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    counts = range(1, 9000)
    rounded = [padded_count(count, torch.bfloat16, cpu) for count in counts]
    assert all(count <= size <= count * 17 / 16 for count, size in zip(counts, rounded, strict=True))
    assert len({size for size in rounded if 4096 < size <= 8192}) == 16
    assert padded_count(4097, torch.float32, cpu) == padded_count(4097, torch.bfloat16, torch.device("cuda")) == 4097
