"""Sampling in which every row draws by itself: what it gets depends on its own request, not on its neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowDraws", "row_key", "uniform"]

NARROW = 256
"""Most likely tokens that are looked at first; they nearly always hold the share `top_p`."""

# SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def row_key(seed: int, text: str, draw: int) -> int:
    """64-bit key of one answer's draws.

    Args:
        seed: the request's seed.
        text: all that the model reads.
        draw: number of the answer to this request.
    """
    digest = hashlib.blake2b(f"{seed}\0{draw}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def uniform(keys: NDArray[np.uint64], step: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), each a function of its row's key, the step and the token.

    They are element `token` of the SplitMix64 stream whose seed is element `step` of the row's.

    Args:
        keys: one for each row.
        step: number of the token that is drawn.
        tokens: ids, rows × candidates.
    """
    # Arrays wrap around silently, single numbers would warn.
    streams = _mixed(keys + np.uint64(_GOLDEN * (step + 1) % 2**64))
    bits = _mixed(streams[:, None] + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


class RowDraws:
    """A logits processor that leaves each row one token, drawn by temperature and nucleus (`top_p`); for greedy search.

    The token is the largest of log p + Gumbel noise (Gumbel-max), which is a sample of p. The noise belongs to the
    token, so that rounding, which moves p a little, seldom changes the winner.
    """

    def __init__(self, keys: Sequence[int], temperature: float, top_p: float, prompt_length: int) -> None:
        """`keys`: :func:`row_key` of each row; the first `prompt_length` tokens of all rows are not drawn."""
        self._keys = np.array(keys, np.uint64)
        self._temperature, self._top_p, self._prompt_length = temperature, top_p, prompt_length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (rows × vocabulary, float) with everything but the drawn tokens at −∞.

        Args:
            input_ids: tokens so far, rows × length.
            scores: logits, rows × vocabulary; overwritten.
        """
        import torch

        step = input_ids.shape[1] - self._prompt_length
        logs = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        drawn = np.zeros(len(self._keys), np.int64)
        wide = np.ones(len(self._keys), bool)
        if self._top_p < 1 and logs.shape[1] > NARROW:
            best = torch.topk(logs, NARROW, dim=-1)
            drawn, mass = self._drawn(slice(None), step, best.values, best.indices)
            wide = mass < self._top_p
        for row in np.flatnonzero(wide).tolist():
            best = torch.sort(logs[row : row + 1], dim=-1, descending=True)
            drawn[row : row + 1], _ = self._drawn(slice(row, row + 1), step, best.values, best.indices)
        scores.fill_(-torch.inf)
        return scores.scatter_(1, torch.from_numpy(drawn)[:, None].to(scores.device), 0.0)

    def _drawn(self, rows: slice, step: int, logs: Any, ids: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Drawn token and mass of all candidates; these come by falling probability, rows × candidates."""
        values = logs.double().cpu().numpy()
        tokens = ids.cpu().numpy()
        probabilities = np.exp(values)
        upto = np.cumsum(probabilities, axis=1)
        noise = -np.log(-np.log(uniform(self._keys[rows], step, tokens)))
        inside = upto - probabilities < self._top_p
        # The most likely token stays, whatever rounding makes of a tiny `top_p`.
        inside[:, 0] = True
        best = np.argmax(np.where(inside, values + noise, -np.inf), axis=1)
        return tokens[np.arange(len(tokens)), best], upto[:, -1]
