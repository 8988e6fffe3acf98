"""The loss against a loop that follows its definition, and against open_clip's."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional

from paraclip_core.config import LossWeights
from paraclip_core.training.losses import Pair, contrastive_loss, false_negatives, info_nce, named_pairs

KINDS = ("image", "caption", "paraphrase_1", "paraphrase_2")


def embeddings(rows: int, dim: int = 8, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {kind: functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1) for kind in KINDS}


def by_loop(first: Tensor, second: Tensor, scale: float, left_out: list[list[bool]]) -> float:
    rows, total = len(first), 0.0
    for i in range(rows):
        forward = [scale * float(first[i] @ second[j]) for j in range(rows) if i == j or not left_out[i][j]]
        back = [scale * float(first[j] @ second[i]) for j in range(rows) if i == j or not left_out[j][i]]
        right = scale * float(first[i] @ second[i])
        total += math.log(sum(map(math.exp, forward))) - right + math.log(sum(map(math.exp, back))) - right
    return total / (2 * rows)


def test_equals_open_clip() -> None:
    found = embeddings(16)
    scale = torch.tensor(math.log(14.0)).exp()
    ours = info_nce(found["image"], found["caption"], scale)
    torch.testing.assert_close(ours, ClipLoss()(found["image"], found["caption"], scale))


@pytest.mark.parametrize("pair", named_pairs(LossWeights(image_caption=1, image_paraphrase_1=1)))
def test_masked_loss_equals_a_loop(pair: Pair) -> None:
    found = embeddings(7, seed=3)
    keys = {
        "image": [1, 1, 2, 3, 4, 5, 6],
        "caption": [10, 11, 12, 12, 14, 15, 16],
        "paraphrase_1": [20, 21, 22, 23, 24, 14, 26],  # row 5's is row 4's caption
        "paraphrase_2": [30, 31, 32, 33, 34, 35, 30],
    }
    first, second = keys[pair.first], keys[pair.second]
    left_out = [
        [
            i != j
            and (
                keys["image"][i] == keys["image"][j]
                or first[i] == first[j]
                or second[i] == second[j]
                or (pair.first != "image" and first[i] == second[j])
            )
            for j in range(7)
        ]
        for i in range(7)
    ]
    tensors = {kind: torch.tensor(values) for kind, values in keys.items()}
    assert false_negatives(pair, tensors).tolist() == left_out
    ours, parts = contrastive_loss(found, torch.tensor(math.log(9.0)), [pair], tensors)
    expected = by_loop(found[pair.first], found[pair.second], 9.0, left_out)
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    assert float(parts[pair.name]) == pytest.approx(expected, rel=1e-5)


def test_weights_and_sum() -> None:
    found, scale = embeddings(5), torch.tensor(1.0)
    pairs = named_pairs(LossWeights(image_paraphrase_2=2, caption_paraphrase_1=0, paraphrase_1_paraphrase_2=0.5))
    assert [pair.name for pair in pairs] == ["image~paraphrase_2", "paraphrase_1~paraphrase_2"]
    total, parts = contrastive_loss(found, scale, pairs)
    assert float(total) == pytest.approx(2 * float(parts[pairs[0].name]) + 0.5 * float(parts[pairs[1].name]), rel=1e-6)


def test_gradients_reach_texts_and_scale_even_where_every_negative_is_left_out() -> None:
    found = {kind: tensor.requires_grad_() for kind, tensor in embeddings(3).items()}
    scale = torch.tensor(2.0, requires_grad=True)
    same = {kind: torch.zeros(3, dtype=torch.int64) for kind in KINDS}
    total, _ = contrastive_loss(found, scale, named_pairs(LossWeights()), same)
    total.backward()
    assert float(total.detach()) == 0.0
    assert scale.grad is not None and torch.isfinite(scale.grad)
    assert all(torch.isfinite(tensor.grad).all() for tensor in found.values() if tensor.grad is not None)


def test_loss_is_fp32_under_autocast() -> None:
    found = {kind: tensor.bfloat16() for kind, tensor in embeddings(4).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = contrastive_loss(found, torch.tensor(4.0), named_pairs(LossWeights()))
    assert total.dtype == torch.float32
