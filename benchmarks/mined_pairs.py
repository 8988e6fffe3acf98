"""Pairs that the engine `mined` would take across images, to be judged by hand; or what finding neighbors costs.

    python benchmarks/mined_pairs.py -c CONFIG [--set …] --min-cosine 0.6 --min-similarity 0.6 --pairs 80
    python benchmarks/mined_pairs.py --random 100000 --dimensions 512

The first prints, for captions drawn by chance, both cosines, the caption, and the nearest image's caption that is near
in meaning. The second plants a near-duplicate (cosine 0.95) of every tenth of so many random images, and prints CPU
time, memory and how many of them were found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from paraclip.tasks.run.run import Run, RunCorpus
from paraclip_core.clip.neighbors import near_images
from paraclip_core.paraphrase.meaning import SentenceEncoder
from paraclip_core.settings import load_settings

COSINE = 0.95
BLOCK = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--min-cosine", type=float, default=0.6)
    parser.add_argument("--min-similarity", type=float, default=0.7)
    parser.add_argument("--most-images", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--random", type=int, default=0, help="so many random images, in a temporary file")
    parser.add_argument("--dimensions", type=int, default=512, help="of the random images")
    arguments = parser.parse_args()
    if arguments.random:
        random_images(arguments.random, arguments.dimensions)
    else:
        show_pairs(arguments)


def show_pairs(arguments: argparse.Namespace) -> None:
    corpus = RunCorpus(Run(load_settings(arguments.config, arguments.overrides)))
    captions: dict[str, str] = {}
    for batch in corpus.captions(["image_id", "caption"]):
        for image, caption in zip(*(batch.column(name).to_pylist() for name in batch.schema.names), strict=True):
            captions.setdefault(image, caption)
    captions.pop(None, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    texts = list(captions.values())
    matrix, rows = corpus.features(list(captions))  # pyright: ignore[reportArgumentType]
    images = np.flatnonzero(rows >= 0)
    near = near_images(matrix, rows[images], arguments.min_cosine, arguments.most_images)
    vectors = np.asarray(SentenceEncoder().encode(texts))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    one, other = images[near.first()], images[near.rows]
    similarity = (vectors[one] * vectors[other]).sum(1)
    good = np.flatnonzero(similarity >= arguments.min_similarity)
    _, first = np.unique(one[good], return_index=True)
    nearest = good[first]
    print(f"{len(good)} pairs; {len(nearest)} of {len(images)} images have one")
    drawn = np.random.default_rng(1).choice(nearest, min(arguments.pairs, len(nearest)), replace=False)
    for pair in drawn:
        print(f"{near.cosines[pair]:.2f} {similarity[pair]:.2f} | {texts[one[pair]]} | {texts[other[pair]]}")


def random_images(count: int, dimensions: int) -> None:
    copies = count // 10
    with tempfile.TemporaryFile(prefix="paraclip-features-") as file:
        features = np.memmap(file, np.float16, mode="w+", shape=(count, dimensions))
        plant(features, copies)
        torch.set_num_threads(1)
        before, began = anonymous_gib(), time.process_time()
        peak = before

        def watch(done: int, total: int | None, **facts: object) -> None:
            nonlocal peak
            peak = max(peak, anonymous_gib())

        near = near_images(features, np.arange(count), 0.9, 16, progress=watch)
    duplicates = near.first()[near.rows == near.first() + count - copies]
    print(
        f"{count} images: {time.process_time() - began:.1f} s of one core, "
        f"{peak - before:.2f} GiB besides the features, "
        f"{len(duplicates) / copies:.2%} of the near-duplicates are found"
    )


def plant(features: np.ndarray, copies: int) -> None:
    """Random unit vectors, the last `copies` of them near the first ones."""
    rng = np.random.default_rng(0)
    for start in range(0, len(features) - copies, BLOCK):
        block = features[start : min(start + BLOCK, len(features) - copies)]
        block[:] = unit(rng.standard_normal(block.shape, np.float32))
    for start in range(0, copies, BLOCK):
        ones = features[start : min(start + BLOCK, copies)].astype(np.float32)
        away = rng.standard_normal(ones.shape, np.float32)
        away -= (away * ones).sum(1, keepdims=True) * ones
        place = len(features) - copies + start
        features[place : place + len(ones)] = COSINE * ones + (1 - COSINE**2) ** 0.5 * unit(away)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def anonymous_gib() -> float:
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) / 2**20 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
