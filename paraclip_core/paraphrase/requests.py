"""Requests: which rows a step asks about, and the key of each request.

Equal keys mean that the same answer may be used again. A key is blake2b-128 over step, model, prompt (id and text),
sampling, seed, attempt and input text, each with its length in front, so that no two different requests can run
together into the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.paraphrase.prompts import prompt_for

__all__ = [
    "INPUT_COLUMNS",
    "KEY_BYTES",
    "Batches",
    "RequestKeys",
    "RowCursor",
    "in_fraction",
    "own_share",
    "sampling_json",
    "source_column",
    "step_requests",
]

Batches = Callable[[Sequence[str]], Iterable[pa.RecordBatch]]
"""Reads the named columns of a step's rows (`INPUT_COLUMNS[step]`), from first to last; may be called again."""

INPUT_COLUMNS = {
    1: ("caption_id", "image_id", "caption", "caption_tokens", "licence"),
    2: (
        "caption_id", "image_id", "caption", "paraphrase_1", "caption_tokens", "paraphrase_1_tokens", "similarity_1",
        "licence", "generation_1",
    ),
}  # fmt: skip
"""Columns of the rows that each step reads: of the captions at step 1, of step 1's output at step 2."""

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
        array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(texts), [None, buffer])
        assert isinstance(array, pa.FixedSizeBinaryArray)
        return array


def step_requests(options: ParaphraseOptions, step: int, model: str, attempt: int = 0) -> RequestKeys:
    """The keys of a step's requests at one attempt."""
    prompt = prompt_for(options, step)
    return RequestKeys(step, model, prompt.id, prompt.hash, sampling_json(options.sampling), options.seed, attempt)


def source_column(step: int) -> str:
    """Column with the text that a step asks for."""
    return "caption" if step == 1 else "paraphrase_1"


def in_fraction(text: str, fraction: float) -> bool:
    """Whether a caption belongs to the share that is paraphrased; depends on its text alone."""
    if fraction >= 1:
        return True
    raw = hashlib.blake2b(_utf8(text), digest_size=8).digest()
    return int.from_bytes(raw, "little") / 2**64 < fraction


def own_share(batches: Batches, step: int, first: RequestKeys, shard: int, shards: int) -> Batches:
    """The rows of one shard out of `shards`, told by the key of their first request.

    So one text is asked for by one shard only, and by the same one however many captions say it.
    """
    source = source_column(step)

    def own(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in batches([*columns, *({source} - set(columns))]):
            keys = first.keys(batch.column(source).to_pylist())
            numbers = np.frombuffer(keys.buffers()[1], dtype="<u8")[:: KEY_BYTES // 8]
            yield batch.filter(pa.array(numbers[: len(keys)] % shards == shard)).select(list(columns))

    return own


class RowCursor:
    """Rows of a step by their numbers, which must ascend from call to call."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Read `batches` from the first row on, as far as rows are wanted."""
        self._batches = iter(batches)
        self._batch = pa.RecordBatch.from_pydict({})
        self._start = self._stop = 0

    def take(self, numbers: np.ndarray) -> pa.Table:
        """The rows with these numbers, int64, ascending."""
        pieces: list[pa.RecordBatch] = []
        done = 0
        while done < len(numbers):
            while numbers[done] >= self._stop:
                self._batch = next(self._batches)
                self._start, self._stop = self._stop, self._stop + self._batch.num_rows
            last = int(np.searchsorted(numbers, self._stop))
            pieces.append(self._batch.take(pa.array(numbers[done:last] - self._start)))
            done = last
        return pa.Table.from_batches(pieces)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
