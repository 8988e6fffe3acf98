"""What is trained, and how fast."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from paraclip_core.clip.model import freeze_image_tower
from paraclip_core.config import FinetuneOptions, meaning
from paraclip_core.errors import TrainingError
from paraclip_core.training.optimizer import (
    build_optimizer,
    learning_rate,
    select_parameters,
    set_learning_rate,
    trained_parameters,
)

KINDS = (
    "clip", "eva", "pe", "worldwide", "coca", "roberta", "xlm-roberta", "bert", "mt5", "nllb", "coca-roberta", "siglip",
    "clipa", "mobileclip-s",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_has_the_rate_and_matrices_decay(kind: str, towers: ModuleType, tmp_path: Path) -> None:
    clip = towers.model_of(kind, tmp_path)
    freeze_image_tower(clip)
    optimizer = build_optimizer(clip.model, 0.1)
    set_learning_rate(optimizer, 0.5)
    decays = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(p): (0.5, 0.1 if p.ndim > 1 else 0.0) for p in trained_parameters(clip.model).values()}


@pytest.mark.parametrize(
    ("pattern", "trained"),
    [
        ("ln_final.*, text_projection", {"ln_final.weight", "ln_final.bias", "text_projection", "logit_scale"}),
        ("text.ln_final.weight", None),
        ("token_embedding.weight", {"token_embedding.weight", "logit_scale"}),
    ],
)
def test_a_pattern_says_what_is_trained(tiny: ModuleType, pattern: str, trained: set[str] | None) -> None:
    clip = tiny.tiny_clip()
    freeze_image_tower(clip)
    if trained is None:
        with pytest.raises(TrainingError, match=r"'text\.ln_final\.weight' fits no parameter .* ln_final\.weight"):
            select_parameters(clip.model, pattern)
        return
    select_parameters(clip.model, pattern)
    assert set(trained_parameters(clip.model)) == trained


@pytest.mark.parametrize("pattern", ["", ",", " , "])
def test_a_pattern_of_nothing_is_refused(tiny: ModuleType, pattern: str) -> None:
    clip = tiny.tiny_clip()
    freeze_image_tower(clip)
    with pytest.raises(TrainingError, match=r"finetune\.train is .* trains nothing; write `text` .* like .*ln_final"):
        select_parameters(clip.model, pattern)


def test_the_whole_tower_and_a_frozen_scale(tiny: ModuleType) -> None:
    clip = tiny.tiny_clip()
    freeze_image_tower(clip)
    everything = set(trained_parameters(clip.model))
    select_parameters(clip.model, "text")
    assert set(trained_parameters(clip.model)) == everything
    select_parameters(clip.model, "text", learn_scale=False)
    assert set(trained_parameters(clip.model)) == everything - {"logit_scale"}
    clip = tiny.tiny_clip()
    freeze_image_tower(clip)
    select_parameters(clip.model, "transformer.resblocks.*")
    assert {name.split(".")[0] for name in trained_parameters(clip.model)} == {"transformer", "logit_scale"}


def test_options_that_change_the_weights_are_in_the_fingerprint() -> None:
    assert {"warmup", "train", "logit_scale", "distil"} <= set(meaning(FinetuneOptions()))
    assert "memory_gib" not in meaning(FinetuneOptions())


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1e-3, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 1, 1e-3, 0.5) == 1e-3
