"""Queries a second that the search page answers, and milliseconds a search over an index of 512 dimensions.

python benchmarks/bench_search.py --images 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from paraclip_core.clip.search import Searcher

DIMENSION, TOGETHER, DEPTH = 512, 64, 20


def seconds(searcher: Searcher, queries: np.ndarray, rounds: int) -> float:
    """The median time of one search."""
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        searcher.nearest(queries, DEPTH)
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((TOGETHER, DIMENSION), np.float32)
    for images in given.images:
        features = rng.standard_normal((images, DIMENSION), np.float32).astype(np.float16)
        searcher = Searcher(features, list(map(str, range(images))))
        alone, together = (seconds(searcher, queries[:count], given.rounds) for count in (1, TOGETHER))
        # What one would write first: a product with every row, and a whole sort.
        started = time.perf_counter()
        np.argsort(-(features.astype(np.float32) @ queries[0]), kind="stable")[:DEPTH]
        naive = time.perf_counter() - started
        print(
            f"{images:9,} images: {1000 * alone:7.1f} ms a search alone ({naive / alone:.1f}x numpy's), "
            f"{TOGETHER / together:7.0f} searches/s together"
        )


if __name__ == "__main__":
    main()
