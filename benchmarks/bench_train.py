"""A training step of ViT-B-32's text tower against the loops it replaces, in one run, all sides in turn.

* `train_vs_open_clip_fp32`, `train_vs_open_clip_bf16`: open_clip's own locked loop. Every step decodes, preprocesses
  and encodes its images, tokenises its texts and pads them to 77, and has the same three losses.
* `train_vs_padded_text`: the text-only loop over the same stored features, texts padded to 77 (bf16).

All sides share one model with random weights, one fused AdamW and one gradient clipping, so that only the work before
them differs. Captions and images are Flickr8k's where PARACLIP_DATA has them, else generated ones of the same lengths.
`bound` is the ratio of the floating-point operations of both sides (8.8 GFLOP an image and 6.0 a text of 77 tokens
forward, three times that for a text with its gradients). PARACLIP_DATA defaults to `../shared/data`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import re
import statistics
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from record import record
from torch import Tensor
from torch.nn import functional

from paraclip_core.captions.clean import clean
from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.clip.models import ClipModel, freeze_image_tower, pick_device
from paraclip_core.clip.ragged import Ragged
from paraclip_core.config import LossWeights
from paraclip_core.training.forward import batch_keys, embed_batch, image_features
from paraclip_core.training.losses import contrastive_loss, named_pairs
from paraclip_core.training.optimiser import build_optimiser, clamp_scale, trained_parameters
from paraclip_core.training.rows import TrainingRows

KINDS = ("caption", "paraphrase_1", "paraphrase_2")
PAIRS = named_pairs(LossWeights())
COMMON_WORDS = "a the man woman dog child in on with red blue water grass street two running playing black white"
IMAGE_GFLOP, TEXT_GFLOP, CONTEXT = 8.8, 6.0, 77


@dataclass
class Bench:
    """What all sides share."""

    clip: ClipModel
    rows: TrainingRows
    texts: dict[str, list[str]]
    images: list[bytes]
    features: np.ndarray
    batch: int

    def __post_init__(self) -> None:
        """Prepare optimiser, transform and tokenizer."""
        freeze_image_tower(self.clip)
        self.model: Any = self.clip.model
        self.parameters = trained_parameters(self.clip.model)
        self.optimiser = build_optimiser(self.parameters, 0.1)
        self.transform: Any = open_clip.image_transform(224, is_train=False)
        self.tokenise = open_clip.SimpleTokenizer()
        self.loss = ClipLoss()
        self.keys = np.arange(len(self.images))

    def indices(self, number: int) -> np.ndarray:
        """Rows of a step."""
        return np.arange(number * self.batch, (number + 1) * self.batch) % len(self.rows)

    def ours(self, number: int, precision: str) -> Tensor:
        """Ragged texts, stored features, masked losses."""
        batch = self.rows.take(self.indices(number), KINDS)
        embeddings = embed_batch(self.clip, batch, self.features, "bf16" if precision == "bf16" else "fp32")
        keys = batch_keys(batch, self.keys, self.clip.device)
        return contrastive_loss(embeddings, self.clip.model.get_parameter("logit_scale"), PAIRS, keys)[0]

    def padded(self, number: int, precision: str) -> Tensor:
        """Texts padded to the context, stored features."""
        batch = self.rows.take(self.indices(number), KINDS)
        embeddings = {"image": image_features(self.features, batch.image_rows, self.clip.device)}
        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=precision == "bf16"):
            for kind in KINDS:
                tokens = torch.from_numpy(batch.texts[kind].padded(CONTEXT)).to(self.clip.device)
                embeddings[kind] = self.model.encode_text(tokens, normalize=True)
        return self._sum(embeddings)

    def open_clip(self, number: int, precision: str) -> Tensor:
        """open_clip's locked loop: pixels every step."""
        rows = self.indices(number)
        files = [self.images[self.rows.image_rows[row]] for row in rows]
        pixels = torch.stack([self.transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        embeddings: dict[str, Tensor] = {}
        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=precision == "bf16"):
            embeddings["image"] = self.model.encode_image(pixels.to(self.clip.device), normalize=True)
            for kind in KINDS:
                tokens = self.tokenise([self.texts[kind][row] for row in rows]).to(self.clip.device)
                embeddings[kind] = self.model.encode_text(tokens, normalize=True)
        return self._sum(embeddings)

    def _sum(self, embeddings: dict[str, Tensor]) -> Tensor:
        scale = self.clip.model.get_parameter("logit_scale").exp()
        losses = [self.loss(embeddings[p.first].float(), embeddings[p.second].float(), scale) for p in PAIRS]
        return torch.stack(losses).sum()

    def seconds(self, side: Callable[[int, str], Tensor], number: int, precision: str) -> float:
        """Time of a whole step: batch, forward, backward, clipping, update."""
        began = time.perf_counter()
        loss = side(number, precision)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimiser.step()
        clamp_scale(self.clip.model.get_parameter("logit_scale"))
        if self.clip.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def flickr(folder: Path, count: int) -> tuple[dict[str, list[str]], list[bytes]]:
    """Real captions (three of each image's five) and real image files."""
    described = json.loads((folder / "dataset_flickr8k.json").read_text())["images"]
    chosen = random.Random(0).sample(described, count)
    texts = {kind: [clean(image["sentences"][n]["raw"]) for image in chosen] for n, kind in enumerate(KINDS)}
    with tarfile.open(folder / "images_128.tar") as tar:
        files = [tar.extractfile(f"images/{image['filename']}") for image in chosen]
        return texts, [file.read() for file in files if file is not None]


def generated(count: int) -> tuple[dict[str, list[str]], list[bytes]]:
    """Texts of 5 to 19 common words and noise images, where there is no real data."""
    words = re.findall(r"\w+", COMMON_WORDS)
    chosen = random.Random(0)
    texts = {kind: [" ".join(chosen.choices(words, k=chosen.randint(5, 19))) for _ in range(count)] for kind in KINDS}
    noise = np.random.default_rng(0)
    images = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (128, 128, 3), np.uint8)).save(file, "JPEG")
        images.append(file.getvalue())
    return texts, images


def prepare(batch: int, device: torch.device) -> tuple[Bench, float]:
    """The model and its rows; and the mean length of the texts in tokens."""
    folder = Path(os.environ.get("PARACLIP_DATA", "../shared/data")) / "flickr8k"
    real = (folder / "images_128.tar").exists()
    texts, images = flickr(folder, 4 * batch) if real else generated(4 * batch)
    encode = Tokeniser().encode_batch
    ragged = {kind: Ragged.from_arrow(encode(texts[kind])) for kind in KINDS}
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32") or {}
    clip = ClipModel(open_clip.create_model("ViT-B-32", device=device), config, {}, "ViT-B-32")
    features = functional.normalize(torch.randn(len(images), clip.embed_dim), dim=-1).half().numpy()
    bench = Bench(clip, TrainingRows(ragged, np.arange(len(images))), texts, images, features, batch)
    return bench, float(np.mean([tokens.lengths.mean() for tokens in ragged.values()]))


def main() -> None:
    """Measure and print one JSON line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    bench, length = prepare(options.batch, pick_device(options.device))
    share = length / CONTEXT
    text = len(KINDS) * 3 * TEXT_GFLOP
    bounds = {"open_clip": (IMAGE_GFLOP + text) / (text * share), "padded": 1 / share}
    print(f"batch {options.batch}, {length:.1f} tokens a text, {torch.get_num_threads()} threads")
    plans = {
        "train_vs_open_clip_fp32": ("open_clip", "fp32", "open_clip's locked loop, fp32"),
        "train_vs_open_clip_bf16": ("open_clip", "bf16", "open_clip's locked loop, bf16"),
        "train_vs_padded_text": ("padded", "bf16", "the same loop with texts padded to 77, bf16"),
    }
    results = []
    for name, (other, precision, against) in plans.items():
        times: dict[str, list[float]] = {"ours": [], other: []}
        for number in range(options.rounds + 1):
            for side, seconds in times.items():
                seconds.append(bench.seconds(getattr(bench, side), number, precision))
        ours, theirs = (statistics.median(seconds[1:]) for seconds in times.values())  # the first round warms up
        print(f"{name}: {options.batch / ours:.1f} against {options.batch / theirs:.1f} samples/s")
        results.append((name, options.batch / ours, against, theirs / ours, bounds[other]))
    for name, rate, against, ratio, bound in results:
        record(name, rate, "samples/s", against, ratio, bound)


if __name__ == "__main__":
    main()
