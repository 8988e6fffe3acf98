"""Queries a second that the search page answers, and milliseconds a search over an index of 512 dimensions.

    python benchmarks/bench_search.py --images 10000 100000 1000000
    python benchmarks/bench_search.py --images 5000000 --memory 10
    python benchmarks/bench_search.py --url http://127.0.0.1:7860/ --queries queries.txt

The last asks a running page (`paraclip ui`) for as many queries at once as it searches together, each a line of the
file that no other request had.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from paraclip_core.clip.search import Searcher

DIMENSION, TOGETHER, DEPTH, BLOCK = 512, 64, 20, 65_536


def seconds(searcher: Searcher, queries: np.ndarray, rounds: int) -> float:
    """The median time of one search."""
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        searcher.nearest(queries, DEPTH)
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def ask(url: str, queries: list[str]) -> list[float]:
    """Milliseconds that each query took, one after the other over one connection."""
    # A client of the standard library, since it runs on the cores that the page searches on.
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=60)
    took: list[float] = []
    for query in queries:
        started = time.perf_counter()
        connection.request("POST", "/search", json.dumps({"query": query}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {answer.decode()[:200]}")
        took.append(1000 * (time.perf_counter() - started))
    return took


def served(url: str, queries: list[str]) -> None:
    """Print what a running page answers in a second, asked by `TOGETHER` threads."""
    started = time.perf_counter()
    with ThreadPoolExecutor(TOGETHER) as threads:
        took = list(
            chain.from_iterable(threads.map(partial(ask, url), (queries[i::TOGETHER] for i in range(TOGETHER))))
        )
    rate = len(took) / (time.perf_counter() - started)
    middle, late = np.percentile(took, [50, 95])
    print(f"{rate:.0f} queries/s by HTTP, {TOGETHER} at once: median {middle:.0f} ms, 95 % within {late:.0f} ms")


def random_features(rng: np.random.Generator, images: int) -> np.ndarray:
    """float16 [images, DIMENSION]; blocks keep the float32 numbers few."""
    features = np.empty((images, DIMENSION), np.float16)
    for start in range(0, images, BLOCK):
        block = features[start : start + BLOCK]
        block[:] = rng.standard_normal(block.shape, np.float32)
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that the features may take as float32")
    parser.add_argument("--url", help="of a running page")
    parser.add_argument("--queries", type=Path, help="file with a query a line")
    given = parser.parse_args()
    if given.url:
        return served(given.url, given.queries.read_text("utf-8").splitlines())
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((TOGETHER, DIMENSION), np.float32)
    for images in given.images:
        features = random_features(rng, images)
        searcher = Searcher(features, list(map(str, range(images))), int(given.memory * 2**30))
        alone, together = (seconds(searcher, queries[:count], given.rounds) for count in (1, TOGETHER))
        del searcher
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
