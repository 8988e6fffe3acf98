"""Retrieval evaluation over stored image features against CLIP_benchmark's own loop, on the same model and captions.

Ours encodes each distinct caption at its real length and ranks against features that the features stage has stored.
CLIP_benchmark decodes and encodes every image and pads every text each time a model is evaluated; its loop is restated
here. Both sides run in fp32 and must agree on every recall.

    python benchmarks/bench_eval.py --data FOLDER/flickr8k
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from record import arguments, data_folder, in_turns, record

from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.encode import encode_images, image_transform
from paraclip_core.clip.images import ImageArchive, decode_image
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.options import ModelOptions
from paraclip_core.evaluation.base import Captions, stored_pool
from paraclip_core.evaluation.benchmarks import retrieval
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.published import image_names, images_beside, load_captions

DEPTHS = [1, 5, 10]
BATCH = 32

Files = list[bytes]
Batches = Iterator[tuple[torch.Tensor, Sequence[list[str]]]]
"""Preprocessed images with their lists of captions."""


class Loaded(ModelEncoder):
    """A candidate whose model is loaded already."""

    def __init__(self, clip: ClipModel) -> None:
        super().__init__("built-in")
        self.__dict__["clip"] = clip


def batches(files: Files, captions: Sequence[list[str]], transform: Callable[[Image.Image], Any]) -> Batches:
    """What CLIP_benchmark iterates over."""
    for start in range(0, len(files), BATCH):
        pixels = [transform(decode_image(data, "image")) for data in files[start : start + BATCH]]
        yield torch.stack(pixels), captions[start : start + BATCH]


def restated(
    model: Any, loader: Iterator[tuple[torch.Tensor, Sequence[list[str]]]], tokenizer: Any
) -> dict[str, float]:
    """CLIP_benchmark's zeroshot_retrieval.evaluate, step for step."""
    images, texts, owner = [], [], []
    for pixels, captions in loader:
        owner += [sum(map(len, images)) + i for i, some in enumerate(captions) for _ in some]
        with torch.no_grad():
            images.append(F.normalize(model.encode_image(pixels), dim=-1))
            texts.append(F.normalize(model.encode_text(tokenizer([t for some in captions for t in some])), dim=-1))
    scores = torch.cat(texts) @ torch.cat(images).T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True
    found = {}
    for k in DEPTHS:
        for name, values, pairs in (("image", scores, positive), ("text", scores.T, positive.T)):
            chosen = F.one_hot(torch.topk(values, k, dim=1)[1], values.shape[1]).sum(1)
            found[f"{name}_retrieval_recall@{k}"] = ((chosen * pairs).sum(1) > 0).float().mean().item()
    return found


def real_data(folder: Path, count: int) -> tuple[Captions, Files]:
    """The first validation images of a Karpathy folder, with their captions."""
    file = next(folder.glob("dataset_*.json"))
    captions, images = load_captions(file, "val"), images_beside(file)
    assert images is not None, f"no images next to {file}"
    ids = list(dict.fromkeys(captions.image_ids))[:count]
    names = image_names(images, ids)
    kept = [row for row in zip(captions.image_ids, captions.captions, strict=True) if row[0] in names]
    with ImageArchive(images) as archive:
        files = [archive.read(names[image_id]) for image_id in ids]
    return Captions([row[0] for row in kept], [row[1] for row in kept], "val"), files


def made_up_data(count: int) -> tuple[Captions, Files]:
    """Noise images with captions of eleven words, for use without real data."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "dog", "red", "small", "old", "man", "runs", "sits", "near", "water", "grass", "two"]
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    ids = [f"{image:05d}" for image in range(count) for _ in range(5)]
    return Captions(ids, [" ".join(rng.choice(words, 11)) for _ in ids], "made up"), files


def main() -> None:
    """Measure both sides in turn and print the ratio."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=data_folder("flickr8k"),
        help="folder with a Karpathy JSON and its images; default: PARACLIP_DATA's flickr8k, else made up",
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    real = options.data is not None
    captions, files = real_data(options.data, options.images) if real else made_up_data(options.images)
    ids = list(dict.fromkeys(captions.image_ids))
    by_image = {image_id: [] for image_id in ids}
    for image_id, caption in zip(captions.image_ids, captions.captions, strict=True):
        by_image[image_id].append(caption)
    clip = built_in_clip(ModelOptions())
    features = encode_images(clip, (decode_image(data, "image") for data in files))
    pool = stored_pool(ids, lambda: features, image_encoder_hash(clip))
    transform, tokenizer = image_transform(clip), open_clip.SimpleTokenizer()
    metrics: dict[str, dict[str, float]] = {}

    def ours(_: int) -> None:
        metrics["ours"] = retrieval.measure(captions, pool, Loaded(clip)).metrics

    def theirs(_: int) -> None:
        metrics["theirs"] = restated(clip.model, batches(files, list(by_image.values()), transform), tokenizer)

    seconds = in_turns({"ours": ours, "theirs": theirs}, options.repeats)
    check(metrics["ours"], metrics["theirs"], len(captions.captions))
    print(f"{len(ids)} images, {len(captions.captions)} captions ({captions.split}), embedded model, fp32")
    rate, ratio = len(captions.captions) / seconds["ours"], seconds["theirs"] / seconds["ours"]
    record("eval_vs_clip_benchmark", rate, "captions/s", "CLIP_benchmark's loop, restated", ratio)


def check(ours: dict[str, float], expected: dict[str, float], captions: int) -> None:
    """Check that both sides agree, except for near ties that float16 features may flip."""
    for k in DEPTHS:
        for mine, their in ((f"text_to_image_recall@{k}", "image"), (f"image_to_text_recall@{k}", "text")):
            other = 100 * expected[f"{their}_retrieval_recall@{k}"]
            if abs(ours[mine] - other) > max(0.5, 300 / captions):
                raise SystemExit(f"{mine}: ours {ours[mine]:.3f}, CLIP_benchmark {other:.3f}")


if __name__ == "__main__":
    main()
