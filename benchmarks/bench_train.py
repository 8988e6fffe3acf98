"""A training step of ViT-B-32's text encoder against the loops it replaces, in one run, all sides in turn.

* `train_vs_open_clip_fp32`, `train_vs_open_clip_bf16`: open_clip's own locked loop. Every step decodes, preprocesses
  and encodes its images, tokenizes its texts and pads them to 77, and has the same three losses.
* `train_vs_padded_text`: the text-only loop over the same stored features, texts padded to 77 (bf16).
* `train_ranks`: a step with ranking distillation against one without (bf16): the base embeds the captions again. The
  bound is 1 / 1.15.

All sides share one model with random weights, one fused AdamW and one gradient clipping, so that only the work before
them differs. Captions and images are Flickr8k's where PARACLIP_DATA has them, else generated ones of the same lengths.
`bound` is the ratio if our step were nothing but its matrix products, measured in the same run: every product of the
encoder's linear layers, forward and both gradients, in the shapes that the step has before sizes are rounded up. So
ratio / bound is the share of the matmul rate that the step reaches. `--clock cpu` (with OMP_NUM_THREADS=1) compares
processor time, for cores that others use, too.
"""

from __future__ import annotations

import io
import json
import logging
import random
import re
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from record import arguments, data_folder, in_turns, record
from torch import Tensor
from torch.nn import functional

from paraclip_core.captions.clean import clean
from paraclip_core.clip.encode import tokenize
from paraclip_core.clip.model import ClipModel, freeze_image_encoder, pick_device, trained_parameters
from paraclip_core.clip.packed import weight_gradient
from paraclip_core.clip.ragged import alphabetical, prefix_trie
from paraclip_core.training.data import Batch, OwnImages, TrainingRows, make_batch
from paraclip_core.training.losses import Anchor, Objective, named_pairs
from paraclip_core.training.options import LossWeights, RankingDistillation
from paraclip_core.training.process import configure_kernels, deterministic, keep_freed_memory
from paraclip_core.training.trainer import build_optimizer, clamp_scale

KINDS = ("caption", "paraphrase_1", "paraphrase_2")
PAIRS = named_pairs(LossWeights())
PLANS = {
    "train_vs_open_clip_fp32": ("open_clip", "fp32", "open_clip's locked loop, fp32"),
    "train_vs_open_clip_bf16": ("open_clip", "bf16", "open_clip's locked loop, bf16"),
    "train_vs_padded_text": ("padded", "bf16", "the same loop with texts padded to 77, bf16"),
}
RANKING_DISTILLATION = "train_ranks"
RANKS_BOUND = 1 / 1.15
BATCHES = {"fp32": 128, "bf16": 256}
"""With these, what loops over padded texts keep of a step of ViT-B-32 takes 17 GB, in either precision."""
COMMON_WORDS = "a the man woman dog child in on with red blue water grass street two running playing black white"
CONTEXT = 77


@dataclass
class Bench:
    """What all sides share."""

    clip: ClipModel
    rows: TrainingRows
    texts: dict[str, list[str]]
    images: list[bytes]
    features: np.ndarray
    batch: int
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        """Prepare optimizer, transform and tokenizer."""
        freeze_image_encoder(self.clip)
        self.model: Any = self.clip.model
        self.parameters = trained_parameters(self.clip.model)
        self.optimizer = build_optimizer(self.clip.model, 0.1)
        self.transform: Any = open_clip.image_transform(self.clip.preprocess_cfg["size"][0], is_train=False)
        self.tokenize = open_clip.SimpleTokenizer()
        self.loss = ClipLoss()
        self.pictures = OwnImages(self.features, np.arange(len(self.rows)), np.arange(len(self.images)))
        self.anchor = Anchor(self.clip, 0, RankingDistillation(weight=1))

    def indices(self, number: int) -> np.ndarray:
        """Rows of a step."""
        return np.arange(number * self.batch, (number + 1) * self.batch) % len(self.rows)

    def batch_of(self, number: int) -> Batch:
        """The batch of a step."""
        indices = self.indices(number)
        return make_batch(self.rows, indices, KINDS, self.pictures.of_step(indices))

    def matmuls(self, number: int, precision: str) -> None:
        """The matrix products of our step's linear layers, and nothing else."""
        texts = self.batch_of(number).tokens
        trie = prefix_trie(texts.take(alphabetical(texts)))
        nodes, ends = len(trie.tokens), len(trie.ends)
        width = int(self.model.token_embedding.weight.shape[1])
        layers = len(self.model.transformer.resblocks)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for into, out, whole in ((1, 3, layers), (1, 1, layers - 1), (1, 4, layers - 1), (4, 1, layers - 1)):
            # Only the ends of texts leave the last layer.
            for rows, times in ((nodes, whole), (ends, layers - whole)):
                x, gradient, weight = self._operands(rows, into * width, out * width, dtype)
                for _ in range(times):
                    functional.linear(x, weight)
                    torch.mm(gradient, weight)
                    weight_gradient(x, gradient)

    def _operands(self, rows: int, into: int, out: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        shapes = ((rows, into), (rows, out), (out, into))
        return tuple(torch.ones(shape, dtype=dtype, device=self.clip.device) for shape in shapes)

    def ours(self, number: int, precision: str) -> Tensor:
        """Ragged texts, stored features, masked losses, as the trainer computes them; the loss."""
        batch = self.batch_of(number)
        with deterministic():
            return Objective(self.clip, PAIRS, "bf16" if precision == "bf16" else "fp32").gradients(batch)[0]

    def ranked(self, number: int, precision: str) -> None:
        """The same with ranking distillation."""
        batch = self.batch_of(number)
        with deterministic():
            Objective(self.clip, PAIRS, "bf16" if precision == "bf16" else "fp32", anchor=self.anchor).gradients(batch)

    def padded(self, number: int, precision: str) -> Tensor:
        """Texts padded to the context, stored features."""
        batch = self.batch_of(number)
        images = torch.from_numpy(batch.features).to(self.clip.device)
        embeddings = {"image": functional.normalize(images, dim=-1)}
        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=precision == "bf16"):
            for kind in KINDS:
                tokens = torch.from_numpy(batch.texts(kind).padded(CONTEXT)).to(self.clip.device)
                embeddings[kind] = self.model.encode_text(tokens, normalize=True)
        return self._backward(embeddings)

    def open_clip(self, number: int, precision: str) -> Tensor:
        """open_clip's locked loop: pixels every step."""
        rows = self.indices(number)
        files = [self.images[self.pictures.rows[row]] for row in rows]
        pixels = torch.stack([self.transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        embeddings: dict[str, Tensor] = {}
        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=precision == "bf16"):
            embeddings["image"] = self.model.encode_image(pixels.to(self.clip.device), normalize=True)
            for kind in KINDS:
                tokens = self.tokenize([self.texts[kind][row] for row in rows]).to(self.clip.device)
                embeddings[kind] = self.model.encode_text(tokens, normalize=True)
        return self._backward(embeddings)

    def _backward(self, embeddings: dict[str, Tensor]) -> Tensor:
        scale = self.clip.model.get_parameter("logit_scale").exp()
        losses = [self.loss(embeddings[p.first].float(), embeddings[p.second].float(), scale) for p in PAIRS]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach()

    def step(self, side: Callable[[int, str], Any], precision: str, number: int) -> None:
        """A whole step: batch, forward, backward, clipping, update."""
        self.optimizer.zero_grad(set_to_none=True)
        side(number, precision)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        clamp_scale(self.clip.model.get_parameter("logit_scale"))
        self.finish()

    def products(self, precision: str, number: int) -> None:
        """A step's matrix products alone."""
        self.matmuls(number, precision)
        self.finish()

    def finish(self) -> None:
        """Wait for the GPU, which works asynchronously."""
        if self.clip.device.type == "cuda":
            torch.cuda.synchronize()


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


def set_up(
    batch: int,
    device: torch.device,
    name: str = "ViT-B-32",
    config: dict[str, Any] | None = None,
    folder: Path | None = None,
) -> tuple[Bench, float]:
    """The model and its rows, and the mean length of the texts in tokens.

    Args:
        batch: rows of a step.
        device: where the model is.
        name: open_clip's name of the model.
        config: open_clip's `model_cfg` of a model that it does not know.
        folder: Flickr8k; None generates captions and images.
    """
    count = min(4 * batch, 8000)  # Flickr8k has hardly more; larger batches take rows again
    texts, images = flickr(folder, count) if folder else generated(count)
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).to(device) if config else open_clip.create_model(name, device=device)
    config = config or open_clip.get_model_config(name)
    assert config is not None
    clip = ClipModel(model, config, {"size": [config["vision_cfg"]["image_size"]] * 2}, name)
    ragged = {kind: tokenize(clip, texts[kind]) for kind in KINDS}
    features = functional.normalize(torch.randn(len(images), clip.embed_dim), dim=-1).half().numpy()
    bench = Bench(clip, TrainingRows(ragged), texts, images, features, batch)
    return bench, float(np.mean([tokens.lengths.mean() for tokens in ragged.values()]))


def measure(bench: Bench, other: str, precision: str, rounds: int) -> tuple[float, float, float]:
    """Seconds of our step, of its matrix products alone, and of the step of `other`, in turns; medians."""
    sides: dict[str, Callable[[int], object]] = {
        "ours": partial(bench.step, bench.ours, precision),
        # Builds the kernels for its shapes, which are not the padded ones of ours.
        "kernels": partial(bench.products, precision),
        "matmuls": partial(bench.products, precision),
        other: partial(bench.step, getattr(bench, other), precision),
    }
    # The first round warms up: memory that the process has for the first time is cleared, page by page.
    seconds = in_turns(sides, rounds, bench.clock, warm=1)
    return seconds["ours"], seconds["matmuls"], seconds[other]


def main() -> None:
    """Measure and print one JSON line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, help="default: 128 in fp32, 256 in bf16")
    parser.add_argument("--rounds", type=int, default=3, help="measured ones, of which the median counts")
    parser.add_argument("--model", default="ViT-B-32", help="records of other models have the model in their names")
    parser.add_argument(
        "--only", choices=[*PLANS, RANKING_DISTILLATION], nargs="+", default=[*PLANS, RANKING_DISTILLATION]
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the cores, too")
    options = parser.parse_args()
    configure_kernels()
    keep_freed_memory()
    folder = data_folder("flickr8k")
    batch = options.batch or max(BATCHES.values())
    bench, length = set_up(batch, pick_device(options.device), options.model, folder=folder)
    if options.clock == "cpu":
        bench.clock = time.process_time
    print(f"{length:.1f} tokens a text, {torch.get_num_threads()} threads")
    suffix = "" if options.model == "ViT-B-32" else f"_{options.model}"
    results = []
    for name in (name for name in options.only if name in PLANS):
        other, precision, against = PLANS[name]
        bench.batch = options.batch or BATCHES[precision]
        ours, matmuls, theirs = measure(bench, other, precision, options.rounds)
        rates = f"{bench.batch / ours:.1f} against {bench.batch / theirs:.1f} samples/s"
        print(f"{name}, batch {bench.batch}: {rates}; {100 * matmuls / ours:.0f} % of the matmul rate", flush=True)
        results.append((name + suffix, bench.batch / ours, against, theirs / ours, theirs / matmuls))
    if RANKING_DISTILLATION in options.only:
        bench.batch = options.batch or BATCHES["bf16"]
        steps = {side: partial(bench.step, getattr(bench, side), "bf16") for side in ("ranked", "ours")}
        seconds = in_turns(steps, options.rounds, bench.clock, warm=1)
        rate, ratio = bench.batch / seconds["ranked"], seconds["ours"] / seconds["ranked"]
        results.append(
            (RANKING_DISTILLATION + suffix, rate, "the same step without ranking distillation", ratio, RANKS_BOUND)
        )
    for name, rate, against, ratio, bound in results:
        record(name, rate, "samples/s", against, ratio, bound)


if __name__ == "__main__":
    main()
