"""Rankings for the page: texts of several requests are encoded together, and the index is read once for all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from queue import Empty, SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip.tasks.image_index import SearchTarget, load_models
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.search import HELD_BYTES, Searcher, refine
from paraclip_core.training.alpha import interpolate
from paraclip_core.training.memory import free_memory

BASE = 0.0
"""The α of the base model; 1 is the tuned one."""
HELD_SHARE = 0.5
"""Share of the free memory that the index may take; a larger one is read from the disk at every search."""
TOGETHER = 64
"""Requests that are answered in one go."""
TEXTS = 20_000
"""Texts whose embeddings stay in memory, some 2 kB each."""


@dataclass(frozen=True)
class Ranking:
    """Rows of the index, best first."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """What one request searches for: words, or an image of the index, by each of some models."""

    alphas: tuple[float, ...]
    wordings: tuple[str, ...]
    """Texts that each model ranks images by; empty with `like`."""
    count: int
    """How many images each ranking has."""
    like: int | None = None
    """Row of the image to search with."""
    within: NDArray[np.int64] | None = None
    """Rows to search among; None: all."""
    right: tuple[int, ...] = ()
    """Rows of images marked as right, which rankings follow."""
    wrong: tuple[int, ...] = ()


class SearchEngine:
    """Base and tuned model over one index."""

    def __init__(self, target: SearchTarget, device: str = "cpu") -> None:
        """Load both models once."""
        free = free_memory(torch.device("cpu")) or 0
        self.searcher = Searcher(target.index.features, target.index.ids, max(HELD_BYTES, int(HELD_SHARE * free)))
        models = load_models(target, self.searcher, device)
        self._base, self._tuned = models["base"], models["tuned"]
        self.repaired = target.base != target.tuned
        self._weights = {name: _text_weights(clip) for name, clip in models.items()}
        self._blended: ClipModel | None = None
        self._alpha = -1.0
        self._texts: OrderedDict[tuple[float, str], NDArray[np.float32]] = OrderedDict()
        self._requests: SimpleQueue[tuple[Query, Future[list[Ranking]]]] = SimpleQueue()
        threading.Thread(target=self._loop, name="search", daemon=True).start()

    def search(self, query: Query) -> list[Ranking]:
        """A ranking for each wording (or the image) by the model at each α, models outermost."""
        future: Future[list[Ranking]] = Future()
        self._requests.put((query, future))
        return future.result()

    def _loop(self) -> None:
        """Answer requests of several threads in one go: those that came in while it was busy."""
        while True:
            batch = [self._requests.get()]
            while len(batch) < TOGETHER:
                try:
                    batch.append(self._requests.get_nowait())
                except Empty:
                    break
            try:
                answers = self._answer([query for query, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _answer(self, queries: list[Query]) -> list[list[Ranking]]:
        """Rankings, read off the whole index once for all queries that are not about some rows."""
        texts = [[(alpha, text) for alpha in query.alphas for text in query.wordings] for query in queries]
        vectors = [self._vectors(*asked) for asked in zip(queries, self._embed(texts), strict=True)]
        of_whole_index = [number for number, query in enumerate(queries) if query.within is None]
        nearest = iter(())
        if of_whole_index:
            count = max(queries[number].count for number in of_whole_index)
            all_vectors = np.concatenate([vectors[number] for number in of_whole_index])
            nearest = zip(*self.searcher.nearest(all_vectors, count), strict=True)
        rankings: list[list[Ranking]] = []
        for query, query_vectors in zip(queries, vectors, strict=True):
            if query.within is not None:
                rankings.append(self._rank_within(query, query.within, query_vectors))
            else:
                best = islice(nearest, len(query_vectors))
                rankings.append([Ranking(rows[: query.count], scores[: query.count]) for rows, scores in best])
        return rankings

    def _vectors(self, query: Query, embeddings: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """What each model searches with, float32 [alphas · wordings, d]; marks move it, see :func:`refine`."""
        rows = self.searcher.rows
        if query.like is not None:
            embeddings = list(rows(np.full(len(query.alphas), query.like)))
        if query.right or query.wrong:
            right, wrong = rows(np.array(query.right, np.int64)), rows(np.array(query.wrong, np.int64))
            embeddings = [refine(vector, right, wrong) for vector in embeddings]
        return np.stack(embeddings)

    def _model(self, alpha: float) -> ClipModel:
        if alpha in (BASE, 1.0):
            return self._tuned if alpha == 1.0 else self._base
        if self._blended is None:
            self._blended = deepcopy(self._tuned)
        if alpha != self._alpha:
            parameters = dict(self._blended.model.named_parameters())
            chosen = {name: parameters[name] for name in self._weights["tuned"]}
            interpolate(chosen, self._weights["base"], self._weights["tuned"], alpha)
            self._alpha = alpha
        return self._blended

    def _embed(self, requests: list[list[tuple[float, str]]]) -> list[list[NDArray[np.float32]]]:
        """Unit embeddings of each request's texts, by the model at the α before each.

        A model encodes all that are new to it at once.
        """
        missing: dict[float, dict[str, None]] = {}
        for alpha, text in chain.from_iterable(requests):
            if (alpha, text) not in self._texts:
                missing.setdefault(alpha, {})[text] = None
        for alpha, texts in missing.items():
            vectors = encode_texts(self._model(alpha), list(texts))
            self._texts.update(((alpha, text), vector) for text, vector in zip(texts, vectors, strict=True))
        embeddings = [[self._texts[text] for text in texts] for texts in requests]
        while len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return embeddings

    def _rank_within(self, query: Query, within: NDArray[np.int64], vectors: NDArray[np.float32]) -> list[Ranking]:
        scores = vectors @ self.searcher.rows(within).T
        best = np.argsort(-scores, axis=1, kind="stable")[:, : query.count]
        return [Ranking(within[places], row[places]) for places, row in zip(best, scores, strict=True)]


def _text_weights(clip: ClipModel) -> dict[str, torch.Tensor]:
    """Every weight but the image tower's."""
    return {
        name: parameter.detach() for name, parameter in clip.model.named_parameters() if not name.startswith("visual.")
    }
