"""Gradient caching against the plain gradient, and against itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.model import ClipModel, freeze_image_encoder, trained_parameters
from paraclip_core.training import grad_cache, losses
from paraclip_core.training.data import TEXTS, Batch, make_batch
from paraclip_core.training.grad_cache import STREAMS, side_by_side
from paraclip_core.training.losses import Anchor, Objective, contrastive_loss, named_pairs
from paraclip_core.training.options import LossWeights, RankingDistillation
from paraclip_core.training.process import deterministic

PAIRS = named_pairs(LossWeights())


@pytest.fixture(autouse=True)
def _same_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(grad_cache, "GROUP_TOKENS", 64)  # so that a small batch has many groups
    monkeypatch.setattr(grad_cache, "FEW_TOKENS", 0)
    with deterministic():
        yield


def batch(tiny: ModuleType, rows: int = 40, hard_negatives: bool = False) -> Batch:
    stored, images = tiny.tiny_rows()
    indices = np.arange(rows)
    made = tiny.tiny_hard_negatives(stored).of(stored.texts["caption"].take(indices), indices, 0)
    return make_batch(stored, indices, TEXTS, images.of_step(indices), made if hard_negatives else None)


def clip_of(tiny: ModuleType, **text: object) -> ClipModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {**tiny.CONFIG, **(tiny.SIGMOID if text else {}), "text_cfg": {**tiny.CONFIG["text_cfg"], **text}}
        model = (open_clip.CustomTextCLIP if text else open_clip.CLIP)(**config)
    clip = tiny.tiny_model(model, config)
    freeze_image_encoder(clip)
    clip.model.train()
    return clip


def gradients(clip: ClipModel) -> dict[str, Tensor]:
    by_name = {name: p.grad.clone() for name, p in trained_parameters(clip.model).items() if p.grad is not None}
    clip.model.zero_grad()
    return by_name


def assert_near(ours: dict[str, Tensor], by_hand: dict[str, Tensor], noise: float) -> None:
    """Whether gradients differ by no more than this share of the whole, and each by twice its share or 2 % of it."""
    assert set(ours) == set(by_hand)
    whole = torch.cat([value.flatten() for value in by_hand.values()]).norm()
    apart = {name: (ours[name] - value).norm() for name, value in by_hand.items()}
    assert float(torch.stack(list(apart.values())).norm()) <= noise * float(whole)
    for name, value in by_hand.items():
        assert float(apart[name]) <= 2 * noise * float(max(value.norm(), 1e-2 * whole)), name


def plain(clip: ClipModel, prepared: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    embeddings = prepared.embeddings(encode_ragged(clip, prepared.tokens))
    keys, bias = prepared.key_tensors(clip.device), getattr(clip.model, "logit_bias", None)
    loss, _ = contrastive_loss(embeddings, clip.model.get_parameter("logit_scale"), PAIRS, keys, bias)
    loss.backward()
    return loss.detach(), gradients(clip)


@pytest.mark.parametrize("kept_tokens", [16_384, 0])
@pytest.mark.parametrize(
    ("text", "noise"),
    # SigLIP's; an encoder that sees its padding sums many more terms.
    [({}, 1e-6), ({"no_causal_mask": True, "pool_type": "last"}, 2e-6)],
)
def test_equals_the_plain_gradient(
    tiny: ModuleType, kept_tokens: int, text: dict[str, object], noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grad_cache, "KEPT_TOKENS", kept_tokens)
    clip, prepared = clip_of(tiny, **text), batch(tiny)
    expected, by_hand = plain(clip, prepared)
    loss, terms = Objective(clip, PAIRS).gradients(prepared)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6) and set(terms) == {pair.name for pair in PAIRS}
    assert_near(gradients(clip), by_hand, noise)


@pytest.mark.parametrize("negatives", [0.0, 0.5])
@pytest.mark.parametrize(("kept_tokens", "teacher"), [(16_384, "caption"), (0, "mean")])
def test_rankings_and_hard_negatives_have_the_plain_gradient(
    tiny: ModuleType, kept_tokens: int, teacher: str, negatives: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "RANKING_TEMPERATURE", 20)
    monkeypatch.setattr(grad_cache, "KEPT_TOKENS", kept_tokens)
    clip, prepared = clip_of(tiny), batch(tiny, hard_negatives=negatives > 0)
    pairs = named_pairs(LossWeights(hard_negatives=negatives))
    anchor = Anchor(clip, 0.0, RankingDistillation.model_validate({"weight": 6.0, "teacher": teacher}), negatives)
    with torch.no_grad():
        taught = ("caption",) if teacher == "caption" else TEXTS
        mean = functional.normalize(sum(encode_ragged(clip, prepared.texts(kind)) for kind in taught), dim=-1)  # type: ignore[arg-type]
        bases = {kind: (mean, 2.0) for kind in TEXTS}
        if negatives:
            bases["hard_negative"] = (encode_ragged(clip, prepared.texts("hard_negative")), 1.0)
        clip.model.get_parameter("text_projection").mul_(torch.linspace(0.5, 2, 16))
    vectors, gallery = prepared.embeddings(encode_ragged(clip, prepared.tokens)), prepared.gallery(clip.device)
    scale, keys = clip.model.get_parameter("logit_scale"), prepared.key_tensors(clip.device)
    expected, _ = contrastive_loss(vectors, scale, PAIRS[:1] if negatives else PAIRS, keys)
    for pair in pairs[1:] if negatives else ():
        first, second = vectors[pair.first], vectors[pair.second]
        logits = (scale.exp() * first @ second.T).masked_fill(losses.false_negatives(pair, keys), float("-inf"))
        for matrix, texts in ((logits, first), (logits.T, second)):
            more = scale.exp() * (texts * vectors["hard_negative"]).sum(1) + np.log(negatives)
            right = torch.arange(len(texts))
            expected = expected + functional.cross_entropy(torch.cat([matrix, more[:, None]], 1), right) / 2
    for kind, (base, weight) in bases.items():
        ours, theirs = torch.log_softmax(20 * vectors[kind] @ gallery.T, 1), torch.softmax(20 * base @ gallery.T, 1)
        expected = expected + weight * functional.kl_div(ours, theirs, reduction="batchmean")
    expected.backward()
    by_hand = gradients(clip)
    loss, terms = Objective(clip, pairs, anchor=anchor).gradients(prepared)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    rankings = {"ranking_distillation", "hard_negative_ranking"} if negatives else {"ranking_distillation"}
    assert set(terms) == {pair.name for pair in pairs} | rankings
    assert min(float(terms[name]) for name in rankings) > 0.01
    assert_near(gradients(clip), by_hand, 4e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_depend_on_no_memory_or_cores(
    tiny: ModuleType, precision: str, cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, prepared = clip_of(tiny), batch(tiny, hard_negatives=True)
    anchor = Anchor(clip, 1.0, RankingDistillation(weight=1.0), 1.0)
    pairs = named_pairs(LossWeights(hard_negatives=1.0))
    runs = []
    for kept_tokens, count in product((16_384, 0), (1, 2)):
        cores(count)
        monkeypatch.setattr(grad_cache, "KEPT_TOKENS", kept_tokens)
        loss, _ = Objective(clip, pairs, precision, anchor).gradients(prepared)  # type: ignore[arg-type]
        runs.append({"loss": loss, **gradients(clip)})
    for other in runs[1:]:
        assert [name for name in runs[0] if not torch.equal(runs[0][name], other[name])] == []


def test_two_run_at_once_on_half_the_cores_each(cores: Callable[[int], None]) -> None:
    cores(4)
    met = threading.Barrier(STREAMS)

    def work(_: int) -> tuple[str, int]:
        met.wait(60)
        return threading.current_thread().name, torch.get_num_threads()

    threads_used = list(side_by_side(work, STREAMS))
    assert len({name for name, _ in threads_used}) == STREAMS and {threads for _, threads in threads_used} == {2}
    assert torch.get_num_threads() == 4
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


def test_an_error_is_raised_when_the_others_have_ended(cores: Callable[[int], None]) -> None:
    cores(2)
    failing, ended = threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 0:
            failing.set()
            raise ValueError("the first one")
        failing.wait(60)
        time.sleep(0.05)
        ended.set()

    with pytest.raises(ValueError, match="the first one"):
        list(side_by_side(work, 2))
    assert ended.is_set()
