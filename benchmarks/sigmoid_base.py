"""A base trained with the pairwise sigmoid loss, as SigLIP was, then tuned with that loss and with InfoNCE.

    python benchmarks/sigmoid_base.py -c configs/demo.yaml --root DIR [--seeds 3]

No option makes such a base: here the embedded model gets a logit bias, which the bootstrap alone learns, with the
scale; for the second side the loss is called without the bias, and the scale is learned. Figures are over the base and
over captions alone. Each side has a root of its own, as the fingerprints of both are equal.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from ablations import METRICS, figures, measure, run_until
from instant import HERE
from record import arguments
from torch import nn

from paraclip.tasks.run.run import Run
from paraclip.tasks.training import bodies
from paraclip_core.clip.model import LOGITS, ClipModel
from paraclip_core.config import ModelOptions
from paraclip_core.settings import load_settings
from paraclip_core.training import losses, trainer

RECIPE = ("bootstrap.logit_scale=30", "bootstrap.epochs=25", "bootstrap.learning_rate=2e-3", "evaluate.control=true")
"""The sigmoid loss wants more steps than the demo's base has."""


@contextmanager
def sigmoid_base() -> Iterator[None]:
    """The embedded base has the bias that SigLIP starts with, and training it learns scale and bias."""
    plain, freeze = bodies.embedded_clip, bodies.freeze_image_tower

    def with_bias(options: ModelOptions) -> ClipModel:
        clip = plain(options)
        clip.model.logit_bias = nn.Parameter(torch.tensor(-10.0))
        return replace(clip, model_cfg={**clip.model_cfg, "init_logit_bias": -10})

    def learn_logits(clip: ClipModel) -> None:
        freeze(clip)
        for name in LOGITS:
            clip.model.get_parameter(name).requires_grad_(True)

    with (
        patch.object(bodies, "embedded_clip", with_bias),
        patch.object(bodies, "freeze_image_tower", learn_logits),
        patch.object(trainer, "freeze_image_tower", learn_logits),
    ):
        yield


@contextmanager
def softmax() -> Iterator[None]:
    """A base with a bias is tuned as if it had none."""
    ours = losses.contrastive_loss
    with (
        patch.object(losses, "contrastive_loss", lambda *given: ours(*given[:4])),
        patch.object(ClipModel, "sigmoid", False),
    ):
        yield


def main() -> None:
    """Train the base, tune it both ways and print a Markdown table."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    roots = {side: chosen.root / side for side in ("sigmoid", "InfoNCE")}
    of_seeds = {
        side: [
            load_settings(chosen.config, [*RECIPE, f"run.root={root}", f"finetune.seed={seed}"], os.environ)
            for seed in range(chosen.seeds)
        ]
        for side, root in roots.items()
    }
    with sigmoid_base():
        run_until("bootstrap", Run(of_seeds["sigmoid"][0], stages=HERE))
    shutil.copytree(roots["sigmoid"], roots["InfoNCE"], copy_function=os.link, dirs_exist_ok=True)
    print(f"| tuned with | {' | '.join(METRICS.values())} |\n|---|{'---|' * len(METRICS)}")
    for side in roots:
        with softmax() if side == "InfoNCE" else nullcontext():
            results = [measure(Run(settings, stages=HERE)) for settings in of_seeds[side]]
        print(f"| {side} | {figures(results, 'rows')} |", flush=True)
        print(f"| … captions alone | {figures(results, 'control')} |", flush=True)


if __name__ == "__main__":
    main()
