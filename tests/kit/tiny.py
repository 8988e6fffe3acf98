"""A training run small enough to be killed often. As a script: one undisturbed run, and one killed at random moments.

python tiny.py FOLDER THREADS KILLS SEED PRECISION EPOCHS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.training.data import TEXTS, OwnImages, TrainingRows
from paraclip_core.training.hard_negatives import HardNegatives, Vocabulary, neighbor_table
from paraclip_core.training.losses import named_pairs
from paraclip_core.training.options import LossWeights, TrainingOptions
from paraclip_core.training.trainer import TrainingJob, train
from paraclip_core.training.validation import RECALL, ValidationSet, measure

VOCABULARY = 500
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": VOCABULARY, "width": 64, "heads": 2, "layers": 1},
}

SIGMOID = {"init_logit_scale": 3.0, "init_logit_bias": -10.0}
"""Options of a model like SigLIP."""


def tiny_clip(seed: int = 0, **more: Any) -> ClipModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tiny_model(open_clip.CLIP(**CONFIG, **more), {**CONFIG, **more})


def tiny_model(model: nn.Module, config: dict[str, Any]) -> ClipModel:
    """A model whose tokenizer is never asked for more than its padding, 0."""
    return ClipModel(model, config, {"size": [32, 32]}, "tiny", tokenizer=SimpleNamespace())


def tiny_texts(words: np.ndarray) -> Ragged:
    """Token lists from rows of word numbers, of lengths 3 to 10."""
    lists = [[VOCABULARY - 2, *row[: 1 + i % 8].tolist(), VOCABULARY - 1] for i, row in enumerate(words)]
    return Ragged.from_lists(lists)


def tiny_rows(rows: int = 60, images: int = 30) -> tuple[TrainingRows, OwnImages]:
    """Rows whose texts follow their image, so that there is something to learn; and the images."""
    random_state = np.random.RandomState(0)
    features = random_state.randn(images, 16)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    image_rows = np.arange(rows) % images
    names = random_state.randint(1, VOCABULARY - 2, (images, 10))
    texts = {kind: tiny_texts((names[image_rows] + number) % (VOCABULARY - 2)) for number, kind in enumerate(TEXTS)}
    return TrainingRows(texts), OwnImages(features, image_rows, np.arange(images))


def tiny_vocabulary() -> Vocabulary:
    """A vocabulary in which the words of negations are the tokens from 400 to 479, and none is left out."""
    ids, none = np.arange(400, 480).reshape(4, 20), np.zeros(0, np.int64)
    phrases = [[400], [401], [404], [405], [401], [401], [402, 403, 401], [402, 403, 401]]
    prepositions, opening = (ids[1, :1], ids[1, 1:2]), (ids[2], ids[3])
    return Vocabulary(
        ids[0], ids[1], prepositions, opening, Ragged.from_lists(phrases, np.int64), (none, none), 1, 1, 24
    )


def tiny_hard_negatives(rows: TrainingRows, seed: int = 0) -> HardNegatives:
    return HardNegatives(tiny_vocabulary(), neighbor_table(rows), seed)


def tiny_job(folder: Path, **changed: Any) -> TrainingJob:
    """A run of 45 steps with a validation after every 5; each `paraphrases` of the 60 rows share one caption.

    `base` has options of the model to tune.
    """
    clip = tiny_clip(**changed.pop("base", {}))
    rows, images = tiny_rows()
    if paraphrases := changed.pop("paraphrases", 0):
        rows = replace(rows, starts=np.arange(0, len(rows) + 1, paraphrases))
    held_out = ValidationSet(np.asarray(images.features), rows.texts["caption"], images.rows)
    options = {"epochs": 9.0, "batch_size": 12, "learning_rate": 2e-3, "precision": "fp32", "checkpoint_steps": 4}
    job: dict[str, Any] = {
        "clip": clip,
        "rows": rows,
        "images": images,
        "pairs": named_pairs(LossWeights()),
        "options": TrainingOptions.model_validate({**options, **changed.pop("options", {})}),
        "scratch": folder / "scratch",
        "log_path": folder / "training_log.jsonl",
        "validate": lambda: measure(clip, held_out).figures,
        "keep_best": RECALL,
        "vocabulary": tiny_vocabulary(),
    }
    return TrainingJob(**{**job, **changed})


def execute(job: TrainingJob, folder: Path) -> None:
    """Train and write the weights to `folder`."""
    train(job)
    save_file({name: value.contiguous() for name, value in job.clip.model.state_dict().items()}, folder / "w.st")


def main(folder: Path, threads: int, kills: int, seed: int, precision: str, epochs: float) -> None:
    """Execute the run in `undisturbed`, and the same one in `killed`."""
    for name, count in (("undisturbed", 0), ("killed", kills)):
        (folder / name).mkdir()
        lives(folder / name, threads, count, seed, precision, epochs)


def lives(folder: Path, threads: int, kills: int, seed: int, precision: str, epochs: float) -> None:
    """Start the run again and again; each child lives for a random number of further steps, the last one to its end.

    The file `killed` says after which step each of them was killed while it trained.
    """
    moments, killed = random.Random(seed), []
    for attempt in range(kills + 1):
        # A fork, because importing torch takes longer than the run.
        child = os.fork()
        if child == 0:
            torch.set_num_threads(threads)
            execute(tiny_job(folder, options={"precision": precision, "epochs": epochs}), folder)
            os._exit(0)
        if attempt < kills:
            _wait_for_growth(folder / "training_log.jsonl", moments.randrange(100, 900), child)
            time.sleep(moments.random() * 0.05)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed.append(_last_step(folder / "training_log.jsonl"))
        elif status:
            sys.exit(f"a child ended with {status}")
    (folder / "killed").write_text(json.dumps(killed))


def _last_step(log: Path) -> int:
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return json.loads(whole[-1])["step"]


def _wait_for_growth(path: Path, size: int, child: int) -> None:
    start = path.stat().st_size if path.exists() else 0
    while not path.exists() or path.stat().st_size < start + size:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], float(sys.argv[6]))
