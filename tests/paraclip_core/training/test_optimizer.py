"""What is trained, and how fast each part learns."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from paraclip_core.clip.model import freeze_image_tower
from paraclip_core.config import BootstrapOptions, FinetuneOptions, meaning
from paraclip_core.errors import TrainingError
from paraclip_core.training import trainer
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
def test_the_embeddings_of_every_tower_learn_most_slowly(kind: str, towers: ModuleType, tmp_path: Path) -> None:
    clip = towers.model_of(kind, tmp_path)
    freeze_image_tower(clip)
    parameters = trained_parameters(clip.model)
    optimizer = build_optimizer(clip.model, 0.1, 0.5)
    set_learning_rate(optimizer, 1.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    # The layers of a tower, by the numbers that stand alone in its parameters' names.
    numbers = {n: int(m[1]) for n in parameters if (m := re.search(r"(?:blocks?|layers?)\.(\d+)\.", n))}
    layers = max(numbers.values()) + 1
    tables = [m.weight for m in clip.model.modules() if isinstance(m, nn.Embedding)]
    embedded = [n for n, p in parameters.items() if n not in numbers and any(p is table for table in tables)]
    assert embedded
    for name, parameter in parameters.items():
        embeds = name in embedded or any(part in name for part in ("positional_", "cls_emb", "embeddings."))
        depth = layers - numbers[name] if name in numbers else layers + 1 if embeds else 0
        assert rates[id(parameter)] == 0.5**depth, name
        assert (decays[id(parameter)] > 0) == (parameter.ndim > 1), name


def test_layers_that_are_not_trained_count(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.optim.AdamW] = []
    monkeypatch.setattr(trainer, "set_learning_rate", lambda optimizer, _: seen.append(optimizer))
    job = tiny.tiny_job(tmp_path, options={"layer_decay": 0.5, "epochs": 0.1})
    freeze_image_tower(job.clip)
    select_parameters(job.clip.model, "token_embedding.*, ln_final.weight")
    trainer.train(job)
    rates = {id(p): group["rate"] for group in seen[0].param_groups for p in group["params"]}
    # The one layer lies between.
    assert rates[id(job.clip.model.get_parameter("token_embedding.weight"))] == 0.25
    assert rates[id(job.clip.model.get_parameter("ln_final.weight"))] == 1.0


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
    assert {"layer_decay", "ema", "train", "logit_scale", "distil", "l2_sp"} <= set(meaning(FinetuneOptions()))
    assert {"layer_decay", "ema"} <= set(meaning(BootstrapOptions()))
    assert "memory_gib" not in meaning(FinetuneOptions())


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1e-3, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 1, 1e-3, 0.5) == 1e-3
