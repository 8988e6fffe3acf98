"""The loop: it learns, it is reproducible, and no kill changes a byte of what it gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from paraclip_core.clip.models import image_tower_hash
from paraclip_core.errors import TrainingError
from paraclip_core.training.trainer import train

SCRIPT = Path(__file__).with_name("tiny.py")


def weights(tiny: ModuleType, folder: Path, **changed: object) -> dict[str, Tensor]:
    job = tiny.tiny_job(folder, **changed)
    train(job)
    return {name: value.clone() for name, value in job.clip.model.state_dict().items()}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_it_learns_and_leaves_the_image_tower_alone(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path)
    before = image_tower_hash(job.clip)
    seen: list[int] = []
    result = train(job, lambda done, total, **facts: seen.append(done))
    assert image_tower_hash(job.clip) == before
    log = lines(tmp_path)
    steps = [line for line in log if "loss" in line]
    checks = [line["validation"]["text_to_image_recall@10"] for line in log if "validation" in line]
    assert [line["step"] for line in steps] == list(range(1, 46)) and len(checks) == 9
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert set(steps[0]["losses"]) == {"image~paraphrase_2", "caption~paraphrase_1", "paraphrase_1~paraphrase_2"}
    assert steps[0]["loss"] == pytest.approx(sum(steps[0]["losses"].values()), rel=1e-5)
    assert result.best == max(checks) and result.steps == 45 and seen[-1] == 45


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(tiny: ModuleType, tmp_path: Path) -> None:
    first, second = weights(tiny, tmp_path / "a"), weights(tiny, tmp_path / "b")
    assert_equal(first, second)
    assert (tmp_path / "a/training_log.jsonl").read_bytes() == (tmp_path / "b/training_log.jsonl").read_bytes()
    other = weights(tiny, tmp_path / "c", options={"seed": 1})
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


def test_best_weights_are_returned(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path)
    figures = iter([10.0, 40.0, 30.0, 40.0, 20.0, 1.0, 1.0, 1.0, 1.0])
    kept: dict[str, Tensor] = {}

    def validate() -> dict[str, float]:
        value = next(figures)
        if value == 40.0 and not kept:
            kept.update({name: tensor.clone() for name, tensor in job.clip.model.state_dict().items()})
        return {"figure": value}

    result = train(tiny.tiny_job(tmp_path, clip=job.clip, validate=validate, keep_best="figure"))
    assert (result.best_step, result.best) == (10, 40.0)
    assert_equal(kept, job.clip.model.state_dict())


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_runs_give_the_same_bytes(tmp_path: Path, threads: int) -> None:
    for name, kills in (("undisturbed", 0), ("killed", 5)):
        (tmp_path / name).mkdir()
        command = [sys.executable, str(SCRIPT), str(tmp_path / name), str(threads), str(kills), "11"]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[3], timeout=300)
    assert int((tmp_path / "killed/killed").read_text()) >= 3
    for file in ("w.st", "training_log.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()


def test_a_damaged_checkpoint_costs_steps_only(tiny: ModuleType, tmp_path: Path) -> None:
    whole = weights(tiny, tmp_path / "whole")
    weights(tiny, tmp_path / "hurt")
    newest = max((tmp_path / "hurt/scratch").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_equal(whole, weights(tiny, tmp_path / "hurt"))
    assert (tmp_path / "hurt/training_log.jsonl").read_bytes() == (tmp_path / "whole/training_log.jsonl").read_bytes()


def test_a_lost_log_means_starting_anew(tiny: ModuleType, tmp_path: Path) -> None:
    whole = weights(tiny, tmp_path)
    log = (tmp_path / "training_log.jsonl").read_bytes()
    (tmp_path / "training_log.jsonl").unlink()
    assert_equal(whole, weights(tiny, tmp_path))
    assert (tmp_path / "training_log.jsonl").read_bytes() == log


def test_other_options_do_not_go_on_from_its_checkpoints(tiny: ModuleType, tmp_path: Path) -> None:
    weights(tiny, tmp_path)
    with pytest.raises(TrainingError, match="belongs to another run"):
        weights(tiny, tmp_path, options={"learning_rate": 1e-3})


def test_divergence_stops_with_the_batch_saved(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path)
    with torch.no_grad():
        job.clip.model.token_embedding.weight[3:] = torch.inf
    with pytest.raises(TrainingError, match="step 1 of 45: loss nan"):
        train(job)
    saved = np.load(tmp_path / "scratch/diverged-step-00000001.npz")
    assert len(saved["image_rows"]) == 12 and {"caption_values", "paraphrase_2_offsets"} <= set(saved)


def test_features_that_are_not_finite_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path, validate=None)
    job.features[7] = np.nan
    with pytest.raises(TrainingError, match="row 7 of the image features is not finite"):
        train(job)


def test_logit_scale_stays_below_100(tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path, validate=None, keep_best=None)
    with torch.no_grad():
        job.clip.model.logit_scale.fill_(9.0)
    train(job)
    assert float(job.clip.model.logit_scale.detach()) <= np.log(100) + 1e-6


def test_bf16_runs(tiny: ModuleType, tmp_path: Path) -> None:
    assert all(torch.isfinite(value).all() for value in weights(tiny, tmp_path, options={"precision": "bf16"}).values())


def test_sigterm_leaves_a_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    whole = weights(tiny, tmp_path / "whole")
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    job = tiny.tiny_job(tmp_path, options={"checkpoint_steps": 0})
    asked = iter([False, True])

    def validate() -> dict[str, float]:
        if next(asked, False):
            os.kill(os.getpid(), signal.SIGTERM)
        return job.validate()

    try:
        with pytest.raises(TrainingError, match="stopped by SIGTERM after step 10 of 45"):
            train(tiny.tiny_job(tmp_path, clip=job.clip, validate=validate, options={"checkpoint_steps": 0}))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    assert [path.name for path in (tmp_path / "scratch").glob("step-*")] == ["step-00000010.safetensors"]
    assert_equal(whole, weights(tiny, tmp_path))
