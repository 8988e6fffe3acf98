"""What became of a block of rows, kept so that the same block with the same answers need not be judged again.

A block's outcome depends on its rows, on everything that gives the step its meaning, on the answers, and through the
flood gate on the blocks before it. So its key is a hash over all of these but the answers, chained from block to block;
that the answers are still the same is for the store to know (`protocol.JudgedBlocks`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from paraclip_core.paraphrase.protocol import JudgedBlocks
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

__all__ = ["OUTCOMES", "Judgement", "Judgements", "code_digest", "rows_digest"]

OUTCOMES = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),  # of the block, from 0
        pa.field("answer", pa.string(), nullable=False),
        pa.field("tokens", PARAPHRASES.field("caption_tokens").type, nullable=False),
        pa.field("similarity", pa.float32()),
        pa.field("generation", pa.binary(16), nullable=False),
    ]
)
"""The rows of a block that were kept."""

CHANGE_BYTES = 32
CHANGES = pa.schema([pa.field("flood", pa.binary(CHANGE_BYTES), nullable=False)])
SCHEMAS = (OUTCOMES, PARAPHRASE_REJECTS, CHANGES)
ABOUT = b"paraclip"
CAPTION_CODE = ("bpe", "clean", "tokens")

Sample = tuple[str, str | None, str | None, str | None]
"""Text, answer, reason and detail, as `Samples.judged` takes them."""


@dataclass(frozen=True)
class Judgement:
    """What became of a block."""

    rows: int
    """How many the block has."""
    kept: pa.RecordBatch
    """Schema `OUTCOMES`, in the order of the rows."""
    rejects: pa.RecordBatch
    """Schema `tables.PARAPHRASE_REJECTS`."""
    requested: int
    """Different requests that its answers came from, all attempts together."""
    samples: Sequence[Sample]
    """Its last rows, for who watches."""
    flood: bytes = b""
    """What it added to the counts behind `repeated_flood`."""

    def parts(self) -> list[pa.RecordBatch]:
        """Itself as record batches."""
        about = json.dumps({"rows": self.rows, "requested": self.requested, "samples": self.samples})
        buffer, count = pa.py_buffer(self.flood), len(self.flood) // CHANGE_BYTES
        flood = pa.FixedSizeBinaryArray.from_buffers(pa.binary(CHANGE_BYTES), count, [None, buffer])
        return [
            self.kept.replace_schema_metadata({ABOUT: about.encode("utf-8", "surrogatepass")}),
            self.rejects,
            pa.RecordBatch.from_arrays([flood], schema=CHANGES),
        ]

    @classmethod
    def of(cls, parts: Sequence[pa.RecordBatch]) -> Judgement | None:
        """What `parts` gave; None where these are none of this layout."""
        if len(parts) != len(SCHEMAS) or any(p.schema != s for p, s in zip(parts, SCHEMAS, strict=True)):
            return None
        kept, rejects, flood = parts
        about = json.loads((kept.schema.metadata or {}).get(ABOUT, b"null"))
        if about is None:
            return None
        changes = flood.column("flood")
        raw = changes.buffers()[1].to_pybytes()[: CHANGE_BYTES * len(changes)] if len(changes) else b""
        kept = kept.replace_schema_metadata()
        return cls(about["rows"], kept, rejects, about["requested"], about["samples"], raw)


class Judgements:
    """The blocks of one pass, in order, and what is known of them."""

    def __init__(self, blocks: JudgedBlocks, basis: str) -> None:
        """`basis` says everything but rows and answers that the outcomes depend on: model, prompt, gates, code."""
        self._blocks = blocks
        self._last = hashlib.blake2b(basis.encode(), digest_size=16).digest()
        self._before: dict[bytes, bytes] = {}

    def look(self, block: pa.RecordBatch) -> tuple[bytes, Judgement | None]:
        """The key of the next block, and what became of it where that is known."""
        key = hashlib.blake2b(self._last + rows_digest(block), digest_size=16).digest()
        parts = self._blocks.find(key)
        judgement = None if parts is None else Judgement.of(parts)
        if judgement is None:
            self._before[key] = self._last
        self._last = key
        return key, judgement

    def keep(self, key: bytes, judgement: Judgement, asked: bool) -> None:
        """Keep what became of the block with this key; `asked`: some of its answers were asked for just now."""
        self._blocks.keep(key, self._before.pop(key), judgement.parts(), asked)

    def stop(self) -> None:
        """Keep nothing more, for the outcome of a block is not final."""
        self._blocks.stop()


def rows_digest(block: pa.RecordBatch) -> bytes:
    """16 bytes over names, types and values of a block, wherever its values lie in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, column in zip(block.schema.names, block.columns, strict=True):
        digest.update(f"{name}:{_kind(column.type)}:{len(column)}:{column.null_count};".encode())
        _add(digest, column)
    return digest.digest()


def _kind(kind: pa.DataType) -> str:
    # Parquet gives the items of a list another name.
    return f"list of {_kind(kind.value_type)}" if isinstance(kind, pa.ListType) else str(kind)


def _add(digest: hashlib.blake2b, column: pa.Array) -> None:
    if column.null_count:
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        column = column.drop_null()
    kind, start, count = column.type, column.offset, len(column)
    if not count or pa.types.is_null(kind):
        return
    if pa.types.is_string(kind) or pa.types.is_list(kind):
        offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[start : start + count + 1]
        digest.update(np.diff(offsets).tobytes())
        if pa.types.is_list(kind):
            values = column.flatten()
            digest.update(f"{values.null_count}".encode())
            _add(digest, values)
        elif column.buffers()[2] is not None:
            digest.update(memoryview(column.buffers()[2])[offsets[0] : offsets[-1]])
        return
    size = kind.byte_width
    digest.update(memoryview(column.buffers()[1])[start * size : (start + count) * size])


@cache
def code_digest() -> str:
    """A hash of the code that judges, so that no outcome of another release's gates is taken for this one's."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in [*sorted(here.glob("*.py")), *(here.parent / "captions" / f"{name}.py" for name in CAPTION_CODE)]:
        digest.update(f"{path.name}:".encode() + path.read_bytes())
    return digest.hexdigest()
