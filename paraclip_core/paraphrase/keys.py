"""The keys of requests: equal keys mean that a cached answer can be reused.

A key is blake2b-128 over step, model, prompt (id and text), sampling, seed, attempt and input text, each prefixed with
its length, so that no two different requests give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.prompts import prompt_for

KEY_BYTES = 16
FORMAT = "paraclip-request-1"


def sampling_json(sampling: SamplingOptions) -> str:
    """The sampling options as canonical JSON: sorted, without whitespace, numbers in one spelling."""
    return json.dumps(sampling.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class RequestKeys:
    """Everything in a request but its text; makes the keys of many texts at once."""

    step: int
    model: str
    """Model id and revision."""
    prompt_id: str
    prompt_hash: bytes
    """16 bytes over the whole text of the prompt."""
    sampling: str
    """Canonical JSON of the sampling options."""
    seed: int
    attempt: int
    """0 for the first request about a text."""

    @cached_property
    def _head(self) -> hashlib.blake2b:
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        about = (self.prompt_hash, self.sampling, self.seed, self.attempt)
        for part in (FORMAT, self.step, self.model, self.prompt_id, *about):
            raw = part if isinstance(part, bytes) else _utf8(str(part))
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
        return digest

    def columns(self, engine: str) -> dict[str, Any]:
        """The columns of `tables.GENERATIONS` that describe the generations of these requests."""
        about = {"step": self.step, "attempt": self.attempt, "engine": engine, "model": self.model, "seed": self.seed}
        return about | {"prompt": self.prompt_id, "prompt_hash": self.prompt_hash, "sampling": self.sampling}

    def key(self, text: str) -> bytes:
        """The 16-byte key of one input text. The text is hashed last, so it needs no length prefix."""
        digest = self._head.copy()
        digest.update(_utf8(text))
        return digest.digest()

    def keys(self, texts: Sequence[str]) -> pa.FixedSizeBinaryArray:
        """The keys of many input texts, in order, as an Arrow array of 16-byte values."""
        return pa.array(map(self.key, texts), pa.binary(KEY_BYTES))


def step_requests(options: ParaphraseOptions, step: int, model: str, attempt: int = 0) -> RequestKeys:
    """The keys of a step's requests at one attempt."""
    prompt = prompt_for(options, step)
    return RequestKeys(step, model, prompt.id, prompt.hash, sampling_json(options.sampling), options.seed, attempt)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def in_fraction(text: str, fraction: float) -> bool:
    """Whether a caption belongs to the fraction that is paraphrased; depends on its text alone."""
    raw = hashlib.blake2b(_utf8(text), digest_size=8).digest()
    return int.from_bytes(raw, "little") / 2**64 < fraction
