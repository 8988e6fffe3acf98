"""Whether the base puts a text further from an image than the text that it paraphrases."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.models import ClipModel
from paraclip_core.clip.ragged import Ragged

__all__ = ["image_cosines"]

# Sums in another order differ in the last bits; rounding keeps them out of decisions and files.
DECIMALS = 4


def image_cosines(clip: ClipModel, texts: Ragged, features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each text with its own image, in the eyes of a model that is not changed by looking.

    Args:
        clip: the model; texts are encoded in fp32.
        texts: n token lists.
        features: stored features of the n images, [n, d]; they need not be of length 1.

    Returns:
        float64 [n], rounded to four decimals.

    Raises:
        InputError: a text is longer than the model's context.
    """
    was_training = clip.model.training
    clip.model.eval()
    with torch.no_grad():
        found = encode_ragged(clip, texts).cpu().numpy().astype(np.float64)
    clip.model.train(was_training)
    images = np.asarray(features, np.float64)
    norms = np.maximum(np.linalg.norm(images, axis=1), np.finfo(np.float32).tiny)
    return np.round((found * images).sum(axis=1) / norms, DECIMALS)
