"""The loop learns, is reproducible, and no kill changes a byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from paraclip_core.clip.model import freeze_image_encoder, image_encoder_hash, trained_parameters
from paraclip_core.clip.ragged import Ragged
from paraclip_core.errors import TrainingError
from paraclip_core.training import trainer
from paraclip_core.training.losses import named_pairs
from paraclip_core.training.options import RECIPES, LossWeights, RecipeName
from paraclip_core.training.trainer import build_optimizer, learning_rate, train

SCRIPT = Path(__file__).parents[2] / "kit" / "tiny.py"
Whole = tuple[Path, dict[str, Tensor]]


def weights(tiny: ModuleType, folder: Path, **changed: object) -> dict[str, Tensor]:
    job = tiny.tiny_job(folder, **changed)
    train(job)
    return {name: value.clone() for name, value in job.clip.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The log and the weights of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "training_log.jsonl", weights(tiny, folder)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_it_learns_and_leaves_the_image_encoder_alone(tiny: ModuleType, tmp_path: Path, whole: Whole) -> None:
    job = tiny.tiny_job(tmp_path)
    before = image_encoder_hash(job.clip)
    seen: list[int] = []
    result = train(job, lambda done, total, **facts: seen.append(done))
    assert image_encoder_hash(job.clip) == before
    log = lines(tmp_path)
    steps = [line for line in log if "loss" in line]
    checks = [line["validation"]["text_to_image_recall@10"] for line in log if "validation" in line]
    assert [line["step"] for line in steps] == list(range(1, 46)) and len(checks) == 9
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert set(steps[0]["losses"]) == {"image~paraphrase_2", "caption~paraphrase_1", "paraphrase_1~paraphrase_2"}
    assert steps[0]["loss"] == pytest.approx(sum(steps[0]["losses"].values()), rel=1e-5)
    assert result.best == max(checks) and result.steps == 45 and seen[-1] == 45
    assert not job.clip.model.training
    # Another time it gives the same bytes.
    assert_equal(whole[1], dict(job.clip.model.state_dict()))
    assert (tmp_path / "training_log.jsonl").read_bytes() == whole[0].read_bytes()


def one_step(tiny: ModuleType, folder: Path, **changed: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after a single step of at most 0.002."""
    options = {"epochs": 0.2, "weight_decay": 0.0, **changed}
    job = tiny.tiny_job(folder, validate=None, keep_best=None, options=options)
    before = {name: value.clone() for name, value in job.clip.model.state_dict().items()}
    assert train(job).steps == 1
    return before, job.clip.model.state_dict()


def test_each_option_does_what_it_says(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CLIP_NORM", 1e9)
    top, gain = "text_projection", "ln_final.weight"
    before, plain = one_step(tiny, tmp_path / "plain")
    assert not torch.equal(plain[top], one_step(tiny, tmp_path / "seed", seed=1)[1][top])
    assert float((plain[top] - before[top]).abs().max()) == pytest.approx(0.002, rel=1e-2)
    _, decayed = one_step(tiny, tmp_path / "decay", weight_decay=0.5)
    torch.testing.assert_close(decayed[top], plain[top] - 0.001 * before[top])
    assert torch.equal(decayed[gain], plain[gain])
    # Gradients far below AdamW's epsilon move nothing.
    monkeypatch.setattr(trainer, "CLIP_NORM", 1e-9)
    _, clipped = one_step(tiny, tmp_path / "clip")
    assert float((clipped[top] - before[top]).abs().max()) < 1e-5


def test_rows_of_one_image_are_no_negatives_of_each_other(tiny: ModuleType, tmp_path: Path) -> None:
    def loss(name: str, keys: np.ndarray) -> float:
        job = tiny.tiny_job(tmp_path / name, validate=None, keep_best=None, options={"epochs": 0.2})
        return train(replace(job, images=replace(job.images, keys=keys))).loss

    # If all images are one, no row has a negative.
    assert loss("one", np.zeros(30, np.int64)) == pytest.approx(0.0, abs=1e-5) and loss("all", np.arange(30)) > 1


@pytest.mark.parametrize("recipe", ["published", "contrast"])
def test_an_interrupted_run_draws_the_same_rewrites_and_hard_negatives(
    recipe: RecipeName, tiny: ModuleType, tmp_path: Path
) -> None:
    losses = RECIPES[recipe].losses
    steps = {"epochs": 6.0, "batch_size": 6, "checkpoint_steps": 4, **losses.model_dump()}
    options = {"options": steps, "paraphrases": 3, "pairs": named_pairs(losses.weights)}
    whole = weights(tiny, tmp_path / "whole", **options)
    job = tiny.tiny_job(tmp_path / "cut", **options)

    def interrupted() -> dict[str, float]:
        if lines(tmp_path / "cut")[-1]["step"] > 9:
            raise KeyboardInterrupt
        return job.validate()

    with pytest.raises(KeyboardInterrupt):
        train(replace(job, validate=interrupted))
    assert_equal(whole, weights(tiny, tmp_path / "cut", **options))
    logs = [(tmp_path / folder / "training_log.jsonl").read_bytes() for folder in ("whole", "cut")]
    # Twenty captions an epoch, each in one of its paraphrases.
    assert logs[0] == logs[1] and lines(tmp_path / "whole")[-1]["step"] == 20
    assert ("hard_negative_ranking" in lines(tmp_path / "whole")[0]["losses"]) is (recipe == "contrast")


def test_hard_negatives_are_of_the_seed_and_the_epoch(tiny: ModuleType, tmp_path: Path) -> None:
    pairs = named_pairs(LossWeights(hard_negatives=1.0))

    def batches(name: str, seed: int) -> list[list[list[int]]]:
        """The hard negatives of all captions at some steps, whatever the order of the captions."""
        run = trainer._Run(tiny.tiny_job(tmp_path / name, pairs=pairs, options={"seed": seed, "batch_size": 60}))
        texts = [run._batch(step).texts("hard_negative") for step in (0, 1, 0)]
        return [sorted(each.take([n]).values.tolist() for n in range(60)) for each in texts]

    first, other = batches("a", 0), batches("b", 1)
    assert first == batches("c", 0) and first[0] == first[2]
    assert first[0] != first[1] and first[0] != other[0]
    job = tiny.tiny_job(tmp_path / "plain")
    assert trainer._Run(replace(job, vocabulary=None)).hard_negatives is None


def test_best_weights_are_returned(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path)
    figures = iter([10.0, 40.0, 40.0, 20.0])
    best: dict[str, Tensor] = {}

    def validate() -> dict[str, float]:
        value = next(figures)
        if value == 40.0 and not best:
            best.update({name: tensor.clone() for name, tensor in job.clip.model.state_dict().items()})
        return {"figure": value}

    result = train(
        tiny.tiny_job(tmp_path, clip=job.clip, validate=validate, keep_best="figure", options={"epochs": 4.0})
    )
    assert (result.best_step, result.best) == (10, 40.0)
    assert_equal(best, job.clip.model.state_dict())


@pytest.mark.parametrize(
    ("precision", "threads", "kills", "epochs"),
    [
        ("bf16", 2, 2, 5),
        *(pytest.param(*loop, marks=pytest.mark.nightly) for loop in (("bf16", 2, 10, 24), ("fp32", 1, 10, 24))),
    ],
)
def test_killed_runs_give_the_same_bytes(tmp_path: Path, precision: str, threads: int, kills: int, epochs: int) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(threads), str(kills), "11", precision, str(epochs)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], timeout=900)
    # Every kill met a training that had taken a step and was not through.
    steps = json.loads((tmp_path / "killed/killed").read_text())
    assert len(steps) == kills and min(steps) > 0 and max(steps) < 5 * epochs and len(set(steps)) > kills // 2
    for file in ("w.st", "training_log.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()


def test_a_lost_log_means_starting_anew(tiny: ModuleType, tmp_path: Path) -> None:
    log, short = tmp_path / "training_log.jsonl", {"epochs": 1.0}
    first, told = weights(tiny, tmp_path, options=short), log.read_bytes()
    log.unlink()
    assert_equal(first, weights(tiny, tmp_path, options=short))
    assert log.read_bytes() == told


def test_a_run_of_other_options_base_or_data_does_not_go_on(tiny: ModuleType, tmp_path: Path) -> None:
    short, job = {"epochs": 1.0}, tiny.tiny_job(tmp_path)
    rows = replace(job.rows, ids=np.random.RandomState(0).randint(0, 256, (60, 16), np.uint8))
    longer = Ragged.from_lists([[1, 2, 3]] * len(rows))
    with torch.no_grad():
        job.clip.model.get_parameter("text_projection")[1, 1] += 1e-3

    def run(**changed: object) -> None:
        train(tiny.tiny_job(tmp_path, **{"options": short, "rows": rows, **changed}))

    run()
    run()
    for changed in (
        {"options": {**short, "learning_rate": 1e-3}},
        {"options": {**short, "feature_distillation": 0.1}},
        {"pairs": named_pairs(LossWeights(image_paraphrase_2=2))},
        {"pairs": named_pairs(LossWeights(hard_negatives=2))},
        {"keep_best": "ao@10"},
        {"clip": job.clip},
        {"images": replace(job.images, keys=job.images.keys[::-1].copy())},
        {"rows": replace(rows, ids=rows.ids[::-1].copy())},
        {"rows": replace(rows, texts={**rows.texts, "paraphrase_2": longer})},
    ):
        with pytest.raises(TrainingError, match="belongs to another run"):
            run(**changed)


def test_checkpoints_come_by_the_clock(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    weights(tiny, tmp_path, options={"epochs": 2.0, "checkpoint_steps": 0})
    assert [line["step"] for line in lines(tmp_path) if "validation" in line] == [5, 10]
    assert (tmp_path / "scratch/step-00000009.safetensors").exists()


def test_divergence_stops_and_the_logit_scale_stays_below_100(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path)
    with torch.no_grad():
        job.clip.model.token_embedding.weight[3:] = torch.inf
    with pytest.raises(TrainingError, match=r"step 1 of 45: loss nan.*learning_rate"):
        train(job)
    job = tiny.tiny_job(tmp_path, validate=None, keep_best=None, options={"epochs": 1.0})
    with torch.no_grad():
        job.clip.model.logit_scale.fill_(9.0)
    result = train(job)
    assert (result.best, result.best_step) == (None, 5)
    assert float(job.clip.model.logit_scale.detach()) <= np.log(100) + 1e-6


@pytest.mark.parametrize("kind", ["clip", "eva", "coca", "mt5", "siglip"])
def test_matrices_of_every_encoder_decay(kind: str, encoders: ModuleType, tmp_path: Path) -> None:
    clip = encoders.model_of(kind, tmp_path)
    freeze_image_encoder(clip)
    groups = build_optimizer(clip.model, 0.1).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {id(p): 0.1 if p.ndim > 1 else 0.0 for p in trained_parameters(clip.model).values()}


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1e-3) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-6 and learning_rate(0, 1, 1e-3) == 1e-3


def test_sigterm_leaves_a_checkpoint(tiny: ModuleType, tmp_path: Path, whole: Whole) -> None:
    options = {"checkpoint_steps": 0}
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    job = tiny.tiny_job(tmp_path, options=options)
    asked = iter([False, True])

    def validate() -> dict[str, float]:
        if next(asked, False):
            os.kill(os.getpid(), signal.SIGTERM)
        return job.validate()

    try:
        with pytest.raises(TrainingError, match="stopped by SIGTERM after step 10 of 45"):
            train(tiny.tiny_job(tmp_path, clip=job.clip, validate=validate, options=options))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    assert [path.name for path in (tmp_path / "scratch").glob("step-*")] == ["step-00000010.safetensors"]
    assert_equal(whole[1], weights(tiny, tmp_path, options=options))
