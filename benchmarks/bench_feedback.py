"""Relevance feedback on photographs: precision after marks, against the query alone and two alternatives.

Queries are words and word pairs that many captions hold; an image is right if at least two of its captions hold all of
them. A simulated user sees the first 20 images and marks up to `--marks` right and as many wrong ones; precision@20 is
taken over the images that were not marked. Alternatives: Rocchio's formula with its usual weights and plain means, and
decision branches, boxes in a few random feature dimensions around the right images (CLIP-Branches, arXiv 2406.13322).

    python benchmarks/bench_feedback.py --root ROOT --model flickr8k
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations

import numpy as np

from paraclip.storage.parquet import iter_batches
from paraclip.storage.roots import open_store
from paraclip.tasks.image_index import search_target
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.search import Searcher, refine

DEPTH = 20
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def concepts(captions: list[tuple[str, str]], least: int, most: int) -> dict[str, set[str]]:
    """Queries and the images that they mean."""
    held: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    stop = {"a", "the", "in", "on", "of", "and", "with", "is", "are", "an", "to", "at", "his", "her", ".", ",", "two"}
    for image, caption in captions:
        words = sorted({word for word in caption.lower().split() if word not in stop and word.isalpha()})
        for size in (1, 2):
            for group in combinations(words, size):
                held[group][image] += 1
    meant = {" ".join(group): {image for image, n in images.items() if n >= 2} for group, images in held.items()}
    return {query: images for query, images in meant.items() if least <= len(images) <= most}


def branch(features: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Votes of 50 boxes in 6 random dimensions each, with the right images inside."""
    votes = np.zeros(len(features))
    for _ in range(50):
        dims = rng.choice(features.shape[1], 6, replace=False)
        low, high = right[:, dims].min(0) - 0.01, right[:, dims].max(0) + 0.01
        votes += ((features[:, dims] >= low) & (features[:, dims] <= high)).all(1)
    return votes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--model", default="flickr8k")
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--skip", type=int, default=80, help="queries that the constants were chosen on")
    parser.add_argument("--marks", type=int, nargs="*", default=[1, 3, 10])
    given = parser.parse_args()
    target = search_target(given.model, open_store(given.root))
    assert target.captions is not None
    searcher = Searcher(target.index.features, target.index.ids)
    features = searcher.rows(np.arange(len(searcher.ids)))
    batches = iter_batches(target.captions.path / "captions", ["image_id", "caption"])
    captions = [(row["image_id"], row["caption"]) for batch in batches for row in batch.to_pylist()]
    meant = concepts(captions, 60, 1200)
    rng = np.random.default_rng(0)
    queries = rng.permutation(sorted(meant))[given.skip : given.skip + given.queries].tolist()
    vectors = encode_texts(load_clip(target.tuned), queries)
    places = {name: row for row, name in enumerate(searcher.ids)}
    print(f"{len(features)} images, {len(queries)} queries, precision@{DEPTH} over unmarked images")
    for marks in given.marks:
        totals: dict[str, list[float]] = defaultdict(list)
        seconds: dict[str, float] = defaultdict(float)
        for query, vector in zip(queries, vectors, strict=True):
            relevant = np.zeros(len(features), bool)
            relevant[[places[image] for image in meant[query]]] = True
            first = features @ vector
            shown = np.argsort(-first, kind="stable")[:DEPTH]
            right, wrong = shown[relevant[shown]][:marks], shown[~relevant[shown]][:marks]
            ways: dict[str, Callable[[], np.ndarray]] = {
                "query alone": lambda f=first: f,
                "Rocchio": lambda v=vector, r=right, w=wrong: (
                    features
                    @ (v + 0.75 * features[r].sum(0) / max(len(r), 1) - 0.15 * features[w].sum(0) / max(len(w), 1))
                ),
                "decision branches": lambda f=first, r=right: branch(features, features[r], rng) + f if len(r) else f,
                "paraclip": lambda v=vector, r=right, w=wrong: features @ refine(v, features[r], features[w]),
            }
            for name, way in ways.items():
                started = time.perf_counter()
                scores = way().copy()
                seconds[name] += time.perf_counter() - started
                scores[[*right, *wrong]] = -np.inf
                totals[name].append(float(relevant[np.argsort(-scores, kind="stable")[:DEPTH]].mean()))
        for name, values in totals.items():
            took = 1000 * seconds[name] / len(queries)
            print(
                f"up to {marks:2d} + {marks:2d} marks  {name:18} {100 * np.mean(values):5.1f} %  {took:6.1f} ms a query"
            )


if __name__ == "__main__":
    main()
