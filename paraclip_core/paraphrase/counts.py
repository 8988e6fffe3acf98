"""What a paraphrase step did, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counts"]


@dataclass
class Counts:
    """What a step did, for its manifest."""

    captions: int = 0
    """Rows that were to be paraphrased."""
    requested: int = 0
    """Different requests, all attempts together."""
    cached: int = 0
    generated: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejections by reason, one for each caption and attempt."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    judged_before: int = 0
    """Captions whose answers an earlier pass judged."""

    def metrics(self) -> dict[str, Any]:
        """The counts as JSON-ready values."""
        values = dict(vars(self))
        values["rejected"] = {reason: self.rejected[reason] for reason in sorted(self.rejected)}
        values["engine_seconds"] = round(self.engine_seconds, 3)
        return values
