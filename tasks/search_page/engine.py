"""Rankings for the page: texts of several requests are encoded together, and the index is read once for all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from queue import Empty, SimpleQueue

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
"""Requests that are answered in one pass over the index."""
TEXTS = 20_000
"""Texts whose embeddings stay in memory, some 2 kB each."""


@dataclass(frozen=True)
class Ranking:
    """Rows of the index, best first."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class _Request:
    vector: NDArray[np.float32]
    count: int
    within: NDArray[np.int64] | None
    answer: Future[Ranking]


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
        self._models = threading.Lock()
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        threading.Thread(target=self._answer, name="search", daemon=True).start()

    def embed(self, texts: Sequence[str], alpha: float) -> NDArray[np.float32]:
        """Unit embeddings of texts by the model at `alpha`, float32 [n, d]."""
        alpha = alpha if self.repaired else BASE
        with self._models:
            missing = [text for text in dict.fromkeys(texts) if (alpha, text) not in self._texts]
            if missing:
                for text, vector in zip(missing, encode_texts(self._model(alpha), missing), strict=True):
                    self._texts[alpha, text] = vector
            vectors = np.stack([self._texts[alpha, text] for text in texts])
            while len(self._texts) > TEXTS:
                self._texts.popitem(last=False)
        return vectors

    def rank(self, vector: NDArray[np.float32], count: int, within: NDArray[np.int64] | None = None) -> Ranking:
        """The nearest images of a vector, among all or among some rows."""
        answer: Future[Ranking] = Future()
        self._requests.put(_Request(vector, count, within, answer))
        return answer.result()

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

    def _answer(self) -> None:
        while True:
            batch = [self._requests.get()]
            while len(batch) < TOGETHER:
                try:
                    batch.append(self._requests.get_nowait())
                except Empty:
                    break
            try:
                self._rank_together(batch)
            except BaseException as error:
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)

    def _rank_together(self, batch: Sequence[_Request]) -> None:
        whole = [request for request in batch if request.within is None]
        if whole:
            vectors = np.stack([request.vector for request in whole])
            rows, scores = self.searcher.nearest(vectors, max(request.count for request in whole))
            for number, request in enumerate(whole):
                request.answer.set_result(Ranking(rows[number, : request.count], scores[number, : request.count]))
        for request in batch:
            if request.within is not None:
                scores = self.searcher.rows(request.within) @ request.vector
                order = np.argsort(-scores, kind="stable")[: request.count]
                request.answer.set_result(Ranking(request.within[order], scores[order].astype(np.float32)))


def _text_weights(clip: ClipModel) -> dict[str, torch.Tensor]:
    """Every weight but the image tower's."""
    return {
        name: parameter.detach() for name, parameter in clip.model.named_parameters() if not name.startswith("visual.")
    }
