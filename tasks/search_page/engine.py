"""Rankings for the page: texts of several requests are encoded together, and the index is read once for all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.feedback import refine
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.search import Searcher
from paraclip_core.training.alpha import interpolate
from tasks.image_index import SearchTarget, load_models

__all__ = ["BASE", "Ranking", "SearchEngine"]

BASE = 0.0
"""The α of the base model; 1 is the tuned one."""
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
class _Query:
    vector: NDArray[np.float32]
    count: int
    within: NDArray[np.int64] | None


Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class _Batcher(Generic[Asked, Answer]):
    """Answers requests of several threads in one go: those that came in while it was busy."""

    def __init__(self, name: str, answer: Callable[[list[Asked]], Sequence[Answer]]) -> None:
        self._answer_all = answer
        self._requests: SimpleQueue[tuple[Asked, Future[Answer]]] = SimpleQueue()
        threading.Thread(target=self._loop, name=name, daemon=True).start()

    def __call__(self, request: Asked) -> Answer:
        future: Future[Answer] = Future()
        self._requests.put((request, future))
        return future.result()

    def _loop(self) -> None:
        while True:
            batch = [self._requests.get()]
            while len(batch) < TOGETHER:
                try:
                    batch.append(self._requests.get_nowait())
                except Empty:
                    break
            try:
                answers = self._answer_all([request for request, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)


class SearchEngine:
    """Base and tuned model over one index."""

    def __init__(self, target: SearchTarget, device: str = "cpu") -> None:
        """Load both models once.

        Raises:
            ModelError: as :func:`tasks.image_index.load_models`.
            InputError: the index holds features that are not finite.
        """
        self.searcher = Searcher(target.index.features, target.index.ids)
        models = load_models(target, self.searcher, device)
        self._base, self._tuned = models["base"], models["tuned"]
        self.repaired = target.base != target.tuned
        self._weights = {name: _text_weights(clip) for name, clip in models.items()}
        self._blended: ClipModel | None = None
        self._alpha = -1.0
        self._texts: OrderedDict[tuple[float, str], NDArray[np.float32]] = OrderedDict()
        self._embed = _Batcher("texts", self._embed_together)
        self._rank = _Batcher("search", self._rank_together)

    def embed(self, texts: Sequence[str], alpha: float) -> NDArray[np.float32]:
        """Unit embeddings of texts by the model at `alpha`, float32 [n, d]."""
        return self._embed((alpha if self.repaired else BASE, tuple(texts)))

    def rank(self, vector: NDArray[np.float32], count: int, within: NDArray[np.int64] | None = None) -> Ranking:
        """The nearest images of a vector, among all or among some rows."""
        return self._rank(_Query(vector, count, within))

    def with_marks(
        self, vector: NDArray[np.float32], positive: Sequence[int], negative: Sequence[int]
    ) -> NDArray[np.float32]:
        """The vector after relevance feedback, see :func:`paraclip_core.clip.feedback.refine`."""
        marked = [self.searcher.rows(np.array(rows, np.int64)) for rows in (positive, negative)]
        return refine(vector, marked[0], marked[1])

    def _model(self, alpha: float) -> ClipModel:
        if alpha in (BASE, 1.0) or not self.repaired:
            return self._tuned if alpha == 1.0 else self._base
        if self._blended is None:
            self._blended = deepcopy(self._tuned)
        if alpha != self._alpha:
            parameters = dict(self._blended.model.named_parameters())
            chosen = {name: parameters[name] for name in self._weights["tuned"]}
            interpolate(chosen, self._weights["base"], self._weights["tuned"], alpha)
            self._alpha = alpha
        return self._blended

    def _embed_together(self, batch: list[tuple[float, tuple[str, ...]]]) -> list[NDArray[np.float32]]:
        """Embeddings of each request's texts; a model encodes all that are new to it at once."""
        missing: dict[float, dict[str, None]] = {}
        for alpha, texts in batch:
            new = (text for text in texts if (alpha, text) not in self._texts)
            missing.setdefault(alpha, {}).update(dict.fromkeys(new))
        for alpha, texts in missing.items():
            if texts:
                vectors = encode_texts(self._model(alpha), list(texts))
                self._texts.update(((alpha, text), vector) for text, vector in zip(texts, vectors, strict=True))
        embeddings = [np.stack([self._texts[alpha, text] for text in texts]) for alpha, texts in batch]
        while len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return embeddings

    def _rank_together(self, batch: list[_Query]) -> list[Ranking]:
        """Rankings, read off the whole index once for all queries that are not about some rows."""
        everywhere = [number for number, query in enumerate(batch) if query.within is None]
        rankings: dict[int, Ranking] = {}
        if everywhere:
            vectors = np.stack([batch[number].vector for number in everywhere])
            rows, scores = self.searcher.nearest(vectors, max(batch[number].count for number in everywhere))
            for number, own_rows, own_scores in zip(everywhere, rows, scores, strict=True):
                count = batch[number].count
                rankings[number] = Ranking(own_rows[:count], own_scores[:count])
        for number, query in enumerate(batch):
            if query.within is not None:
                scores = self.searcher.rows(query.within) @ query.vector
                order = np.argsort(-scores, kind="stable")[: query.count]
                rankings[number] = Ranking(query.within[order], scores[order].astype(np.float32))
        return [rankings[number] for number in range(len(batch))]


def _text_weights(clip: ClipModel) -> dict[str, torch.Tensor]:
    """Every weight but the image tower's."""
    return {
        name: parameter.detach() for name, parameter in clip.model.named_parameters() if not name.startswith("visual.")
    }
