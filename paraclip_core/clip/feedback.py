"""Relevance feedback: a query vector that marked images turn, so that the whole index is ranked anew.

Rocchio's formula (1971) over unit image features, with shrunken means: the sum of the marked images is divided by their
number and one, so that a single mark, which says little, counts half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RIGHT, WRONG = 0.5, 0.3
"""Weights of the images marked as right and as wrong beside the query's 1, chosen on photographs."""


def refine(
    query: NDArray[np.floating], positive: NDArray[np.floating], negative: NDArray[np.floating]
) -> NDArray[np.float32]:
    """The query, drawn towards the images marked as right and away from those marked as wrong.

    Args:
        query: unit vector of the text or image that was searched for, [d].
        positive: unit features of the images marked as right, [p, d].
        negative: those of the images marked as wrong, [n, d].

    Returns:
        Unit vector, float32 [d]; the query itself where nothing is marked.
    """
    vector = np.asarray(query, np.float64)
    vector = vector + RIGHT * positive.sum(0) / (len(positive) + 1) - WRONG * negative.sum(0) / (len(negative) + 1)
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
