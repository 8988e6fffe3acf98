"""Names of requests: equal keys mean that the same answer may be used again.

A key is blake2b-128 over step, model, prompt (id and text), sampling, seed, attempt and input text, each with its
length in front, so that no two different requests can run together into the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from paraclip_core.config import SamplingOptions

__all__ = ["KEY_BYTES", "RequestKeys", "sampling_json"]

KEY_BYTES = 16
FORMAT = "paraclip-request-1"


def sampling_json(sampling: SamplingOptions) -> str:
    """The sampling options as canonical JSON: sorted, without blanks, numbers in one spelling."""
    return json.dumps(sampling.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class RequestKeys:
    """Everything of a request but its text; makes the keys of many texts at once."""

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
    """0 for the first time a text is asked for."""

    @cached_property
    def _head(self) -> hashlib.blake2b:
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        parts = (
            FORMAT.encode(),
            str(self.step).encode(),
            _utf8(self.model),
            _utf8(self.prompt_id),
            self.prompt_hash,
            _utf8(self.sampling),
            str(self.seed).encode(),
            str(self.attempt).encode(),
        )
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest

    def key(self, text: str) -> bytes:
        """The 16-byte key of one input text, which comes last and so needs no length."""
        digest = self._head.copy()
        digest.update(_utf8(text))
        return digest.digest()

    def keys(self, texts: Sequence[str]) -> pa.FixedSizeBinaryArray:
        """The keys of many input texts, in order, as an Arrow array of 16-byte values."""
        copy = self._head.copy
        joined = bytearray()
        for text in texts:
            digest = copy()
            digest.update(text.encode("utf-8", "surrogatepass"))
            joined += digest.digest()
        buffer = pa.py_buffer(bytes(joined))
        found = pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(texts), [None, buffer])
        assert isinstance(found, pa.FixedSizeBinaryArray)
        return found


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
