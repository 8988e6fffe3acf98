"""Searches a second over an index of 512 dimensions, alone and together, against numpy's product and sort.

python benchmarks/bench_search.py --images 10000 100000 1000000
python benchmarks/bench_search.py --images 5000000 --memory 10
"""

from __future__ import annotations

import numpy as np
from record import arguments, in_turns, record

from paraclip_core.clip.search import Searcher

DIMENSION, TOGETHER, DEPTH, BLOCK = 512, 64, 20, 65_536


def random_features(rng: np.random.Generator, images: int) -> np.ndarray:
    """float16 [images, DIMENSION]; blocks keep the float32 numbers few."""
    features = np.empty((images, DIMENSION), np.float16)
    for start in range(0, images, BLOCK):
        block = features[start : start + BLOCK]
        block[:] = rng.standard_normal(block.shape, np.float32)
    return features


def compare(images: int, rounds: int, memory_gib: float) -> None:
    """Search so many random images in both ways, and record."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((TOGETHER, DIMENSION), np.float32)
    features = random_features(rng, images)
    searcher = Searcher(features, list(map(str, range(images))), int(memory_gib * 2**30))
    sides = {
        "alone": lambda _: searcher.nearest(queries[:1], DEPTH),
        "together": lambda _: searcher.nearest(queries, DEPTH),
    }
    ours = in_turns(sides, rounds)
    # What one would write first: a product with every row, and a whole sort.
    first = {"numpy": lambda _: np.argsort(-(features.astype(np.float32) @ queries[0]), kind="stable")[:DEPTH]}
    numpy = in_turns(first, 1)["numpy"]
    against = f"numpy's product and sort, {images:,} images"
    record("search_alone", 1 / ours["alone"], "searches/s", against, numpy / ours["alone"])
    rate = TOGETHER / ours["together"]
    record("search_together", rate, "searches/s", f"{against}, one by one", numpy * rate)


def main() -> None:
    """Measure each size."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that the features may take as float32")
    given = parser.parse_args()
    for images in given.images:
        compare(images, given.rounds, given.memory)


if __name__ == "__main__":
    main()
