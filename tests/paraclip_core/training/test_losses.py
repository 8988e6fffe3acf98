"""The loss against a loop that follows its definition, and against open_clip's."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.model import freeze_image_encoder
from paraclip_core.training import losses
from paraclip_core.training.data import TEXTS, make_batch
from paraclip_core.training.losses import (
    Anchor,
    OneMore,
    Pair,
    contrastive_loss,
    false_negatives,
    info_nce,
    named_pairs,
    pairwise_sigmoid,
    ranking_divergence,
)
from paraclip_core.training.options import LossWeights, RankingDistillation

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


@given(
    rows=st.integers(1, 9), block_rows=st.sampled_from((1, 4, 1024)), masked=st.booleans(), seed=st.integers(0, 99),
    weight=st.none() | st.floats(0.1, 9),
)  # fmt: skip
def test_the_loss_in_blocks_has_the_plain_value_and_gradient(
    rows: int, block_rows: int, masked: bool, seed: int, weight: float | None
) -> None:
    """With a weight each row has one more negative, or it has none if the logarithm is infinite."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, rows, generator=generator) < 0.3) & ~torch.eye(rows, dtype=torch.bool)
    logs = torch.full((rows,), math.log(weight or 1), dtype=torch.float64)
    logs[torch.rand(rows, generator=generator) < (0.3 if weight else 2)] = float("-inf")
    results = []
    for in_blocks in (False, True):
        first, second, more = (unit(rows, seed + n, dtype=torch.float64).requires_grad_() for n in range(3))
        scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
        if in_blocks:
            left_out = (lambda rows, columns: mask[rows, columns]) if masked else None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(losses, "BLOCK_ROWS", block_rows)
                loss = info_nce(first, second, scale, left_out, OneMore(more, logs) if weight else None)
        else:
            logits = scale * first @ second.T
            logits = logits.masked_fill(mask, float("-inf")) if masked else logits
            to_rows, to_columns = (torch.cat([matrix, (scale * (texts * more).sum(1) + logs)[:, None]], 1)
                                   for matrix, texts in ((logits, first), (logits.T, second)))  # fmt: skip
            right = torch.arange(rows)
            loss = (functional.cross_entropy(to_rows, right) + functional.cross_entropy(to_columns, right)) / 2
        (3 * loss).backward()
        results.append([loss.detach(), first.grad, second.grad, scale.grad, more.grad if weight else None])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_a_negative_of_weight_two_counts_as_two_and_one_that_is_a_text_of_its_row_as_none() -> None:
    vectors, scale = embeddings(4) | {"hard_negative": unit(4, 9, 8)}, torch.tensor(math.log(9.0))

    def term(weight: float, keys: dict[str, Tensor] | None = None) -> float:
        _, terms = contrastive_loss(vectors, scale, [Pair("caption", "paraphrase_1", 1.0, weight)], keys)
        return float(terms["caption~paraphrase_1"])

    logits = 9.0 * vectors["caption"] @ vectors["paraphrase_1"].T
    of_rows, of_columns = (9.0 * (vectors[kind] * vectors["hard_negative"]).sum(1)[:, None]
                           for kind in ("caption", "paraphrase_1"))  # fmt: skip
    twice = [torch.cat([matrix, more, more], 1).logsumexp(1) - logits.diagonal()
             for matrix, more in ((logits, of_rows), (logits.T, of_columns))]  # fmt: skip
    assert term(2.0) == pytest.approx(float((twice[0] + twice[1]).mean() / 2), rel=1e-5)
    keys = {kind: torch.arange(4) + 10 * number for number, kind in enumerate(KINDS)}
    assert term(1.0, {**keys, "hard_negative": torch.arange(4) + 90}) == term(1.0) > term(0.0)
    for kind in ("caption", "paraphrase_1", "paraphrase_2"):
        assert term(1.0, {**keys, "hard_negative": keys[kind]}) == term(0.0)
    assert {pair.name: pair.hard_negatives for pair in named_pairs(LossWeights(image_caption=1, hard_negatives=2))} == {
        "image~paraphrase_2": 0,
        "caption~paraphrase_1": 2,
        "paraphrase_1~paraphrase_2": 2,
        "image~caption": 0,
    }


def test_the_whole_matrix_is_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_ROWS", 1024)
    rows, largest = 3000, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    first, second = (functional.normalize(torch.randn(rows, 4), dim=-1).requires_grad_() for _ in range(2))
    keys = torch.arange(rows)
    pair = Pair("image", "caption")
    with Watch():
        total, _ = contrastive_loss({"image": first, "caption": second}, torch.tensor(1.0), [pair],
                                    {"image": keys, "caption": keys})  # fmt: skip
        total.backward()
    assert rows < largest <= 1024 * rows


def test_equals_open_clip_and_is_fp32_under_autocast() -> None:
    vectors = embeddings(16)
    scale = torch.tensor(math.log(14.0)).exp()
    ours = info_nce(vectors["image"], vectors["caption"], scale)
    torch.testing.assert_close(ours, ClipLoss()(vectors["image"], vectors["caption"], scale))
    vectors = {kind: tensor.bfloat16() for kind, tensor in embeddings(4).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = contrastive_loss(vectors, torch.tensor(4.0), named_pairs(LossWeights()))
    assert total.dtype == torch.float32


@pytest.mark.parametrize("block_rows", [1, 16, 1024])
def test_the_sigmoid_loss_and_its_gradients_equal_open_clips(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_ROWS", block_rows)

    def inputs() -> list[Tensor]:
        vectors = embeddings(50)
        scalars = (torch.tensor(30.0), torch.tensor(-9.0))
        return [tensor.requires_grad_() for tensor in (vectors["image"], vectors["caption"], *scalars)]

    ours, theirs = inputs(), inputs()
    first, second, scale, bias = ours
    loss = pairwise_sigmoid(first, second, scale, bias)
    expected = SigLipLoss()(*theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (3 * loss).backward()
    (3 * expected).backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad - other.grad).norm() / other.grad.norm()) < 1e-5


def test_the_sigmoid_loss_leaves_known_pairs_out_and_is_of_images_alone() -> None:
    vectors, scale, bias = embeddings(7, seed=3), torch.tensor(math.log(9.0)), torch.tensor([-2.0])
    keys = {kind: torch.arange(7) for kind in KINDS} | {"image": torch.tensor([1, 1, 2, 3, 4, 5, 6])}
    pairs = named_pairs(LossWeights(image_paraphrase_2=1, caption_paraphrase_1=1, paraphrase_1_paraphrase_2=0))
    _, terms = contrastive_loss(vectors, scale, pairs, keys, bias)
    logits = [[9.0 * float(vectors["image"][i] @ vectors["paraphrase_2"][j]) - 2.0 for j in range(7)] for i in range(7)]
    kept = [(i, j) for i in range(7) for j in range(7) if {i, j} != {0, 1}]
    losses = [math.log1p(math.exp(-logits[i][j] if i == j else logits[i][j])) for i, j in kept]
    assert float(terms["image~paraphrase_2"]) == pytest.approx(sum(losses) / 7, rel=1e-5)
    _, of_softmax = contrastive_loss(vectors, scale, pairs, keys)
    assert terms["caption~paraphrase_1"] == of_softmax["caption~paraphrase_1"]


@pytest.mark.parametrize("pair", named_pairs(LossWeights(image_caption=1)))
def test_masked_loss_equals_a_loop(pair: Pair) -> None:
    vectors = embeddings(7, seed=3)
    keys = {
        "image": [1, 1, 2, 3, 4, 5, 6],
        "caption": [10, 11, 12, 12, 14, 15, 16],
        "paraphrase_1": [20, 21, 22, 23, 24, 14, 26],  # row 5's is row 4's caption
        "paraphrase_2": [30, 31, 32, 33, 34, 35, 30],
    }
    first, second = keys[pair.first], keys[pair.second]

    def equal(i: int, j: int) -> bool:
        crossed = pair.first != "image" and first[i] == second[j]
        return crossed or any(texts[i] == texts[j] for texts in (keys["image"], first, second))

    left_out = [[i != j and equal(i, j) for j in range(7)] for i in range(7)]
    tensors = {kind: torch.tensor(values) for kind, values in keys.items()}
    assert false_negatives(pair, tensors).tolist() == left_out
    assert false_negatives(pair, tensors, slice(2, 5)).tolist() == left_out[2:5]
    assert (
        false_negatives(pair, tensors, columns=slice(2, 5)).T.tolist()
        == [list(row) for row in zip(*left_out, strict=True)][2:5]
    )
    ours, parts = contrastive_loss(vectors, torch.tensor(math.log(9.0)), [pair], tensors)
    expected = by_loop(vectors[pair.first], vectors[pair.second], 9.0, left_out)
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    assert float(parts[pair.name]) == pytest.approx(expected, rel=1e-5)


def test_weights_and_sum() -> None:
    vectors, scale = embeddings(5), torch.tensor(1.0)
    pairs = named_pairs(LossWeights(image_paraphrase_2=2, caption_paraphrase_1=0, paraphrase_1_paraphrase_2=0.5))
    assert [pair.name for pair in pairs] == ["image~paraphrase_2", "paraphrase_1~paraphrase_2"]
    total, parts = contrastive_loss(vectors, scale, pairs)
    assert float(total) == pytest.approx(2 * float(parts[pairs[0].name]) + 0.5 * float(parts[pairs[1].name]), rel=1e-6)


def test_gradients_reach_texts_and_scale_even_where_every_negative_is_left_out() -> None:
    vectors = {kind: tensor.requires_grad_() for kind, tensor in embeddings(3).items()}
    scale = torch.tensor(2.0, requires_grad=True)
    same = {kind: torch.zeros(3, dtype=torch.int64) for kind in KINDS}
    total, _ = contrastive_loss(vectors, scale, named_pairs(LossWeights()), same)
    total.backward()
    assert float(total.detach()) == 0.0
    assert scale.grad is not None and torch.isfinite(scale.grad)
    assert all(torch.isfinite(tensor.grad).all() for tensor in vectors.values() if tensor.grad is not None)


def test_a_scale_in_a_list_of_one_is_a_scale() -> None:
    results = []
    for shape in ((), (1,)):
        scale = torch.full(shape, 2.0, requires_grad=True)
        loss, _ = contrastive_loss(embeddings(5), scale, [Pair("image", "caption")])
        loss.backward()
        assert loss.shape == () and scale.grad is not None
        results.append((float(loss.detach()), float(scale.grad)))
    assert results[0] == results[1]


def test_every_text_is_drawn_to_the_mean_of_the_bases_features(tiny: ModuleType) -> None:
    clip = tiny.tiny_clip()
    freeze_image_encoder(clip)
    rows, images = tiny.tiny_rows()
    batch = make_batch(rows, np.arange(8), TEXTS, images.of_step(np.arange(8)))
    clip.model.train()
    anchor = Anchor(clip, 3.0, RankingDistillation(teacher="mean"))
    assert not anchor.clip.model.training, "dropout would move what it holds on to"
    clip.model.eval()
    with torch.no_grad():
        clip.model.get_parameter("text_projection").mul_(torch.linspace(0.5, 2, 16))
        base = anchor.embeddings(batch, encode_ragged)
    vectors = batch.embeddings(encode_ragged(clip, batch.tokens))
    weight, distance = anchor.terms(batch, vectors, base)["feature_distillation"]
    of_base = [encode_ragged(tiny.tiny_clip(), batch.texts(kind)).detach().numpy() for kind in TEXTS]
    mean = np.mean(of_base, axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    expected = np.mean([1 - (vectors[kind].detach().numpy() * mean).sum(1) for kind in TEXTS])
    assert weight == 3.0 and float(distance.detach()) == pytest.approx(float(expected), rel=1e-5)
    own = Anchor(tiny.tiny_clip(), 3.0, RankingDistillation())
    _, distance = own.terms(batch, vectors, own.embeddings(batch, encode_ragged))["feature_distillation"]
    expected = np.mean(1 - (vectors["caption"].detach().numpy() * of_base[TEXTS.index("caption")]).sum(1))
    assert float(distance.detach()) == pytest.approx(float(expected), rel=1e-5)


def unit(rows: int, seed: int, dim: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).to(dtype), dim=-1)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 7), images=st.integers(1, 9), temperature=st.floats(0.5, 60), cells=st.sampled_from((1, 16, 99))
)
def test_rankings_have_the_defined_value_and_gradient(rows: int, images: int, temperature: float, cells: int) -> None:
    base, gallery = unit(rows, 0), unit(images, 1)
    texts, again = ([unit(rows, seed).requires_grad_() for seed in (2, 3, 4)] for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "RANKING_CELLS", cells)
        ours = ranking_divergence(texts, base, gallery, temperature)
    targets = torch.softmax(temperature * base @ gallery.T, 1)
    plain = [
        functional.kl_div(torch.log_softmax(temperature * text @ gallery.T, 1), targets, reduction="batchmean")
        for text in again
    ]
    expected = torch.stack(plain).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    (3 * ours).backward()
    (3 * expected).backward()
    for first, second in zip(texts, again, strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)
