"""An engine and an encoder without a model, for tests of what becomes of good and bad answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.protocol import Completion, Prompt


class Writer:
    """An engine whose answers are good, floods, echoes or nothing, by text and draw; it knows one word."""

    def __init__(self, name: str, model: str = "writer") -> None:
        self.name, self.model = name, model

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        return [Completion((self._answer(prompt),), 3, 4) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> str:
        if prompt.step == 0:
            return {"fast": "quick, rapid", "quick": "fast"}.get(prompt.text, "")
        number = next((int(word) for word in prompt.text.split() if word.isdigit()), 0)
        if prompt.seed and number % 3:
            number += 1
        if number % 4 == 0:
            return "near the street the car is slow"
        if number % 2:
            return prompt.text if number % 8 == 1 else ""
        return f"near the street the car {number} is fast"

    def close(self) -> None:
        pass


class AllNear:
    """An encoder for which all texts mean nearly the same."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), 1), 1, dtype=np.float32)
