"""Captions/s of a paraphrase pass whose every answer is cached, against the pass that asked an instant engine."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from record import record

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import GateOptions, ParaphraseOptions, SamplingOptions
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.generate import INPUT_COLUMNS, Paraphraser
from paraclip_core.paraphrase.protocol import Completion, Prompt
from storage.generations import GenerationStore

CAPTIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000


class Instant:
    """An engine that takes no time."""

    name = "instant"
    model = "instant-1"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Each text again, with a word in front."""
        return [Completion((f"well {prompt.text}",), 10, 5) for prompt in prompts]

    def close(self) -> None:
        """Nothing to free."""


def captions() -> pa.RecordBatch:
    """Rows as ingest gives them."""
    texts = [f"photo {n} of a dog on the beach with {n % 97} balls" for n in range(CAPTIONS)]
    columns = [
        pa.array([n.to_bytes(16, "little") for n in range(CAPTIONS)], pa.binary(16)),
        pa.nulls(CAPTIONS, pa.string()),
        pa.array(texts),
        Tokeniser().encode_batch(texts),
        pa.array(["CC0"] * CAPTIONS),
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(INPUT_COLUMNS[1]))


def one_pass(rows: pa.RecordBatch, folder: Path) -> float:
    """Seconds of one pass of step 1."""
    options = ParaphraseOptions(gates=GateOptions(preset="paper"), prompts="paper", chunk=1024)
    tokens = Tokeniser().encode_batch
    paraphraser = Paraphraser(1, options, Instant(), GenerationStore(folder), Chooser(options.gates, 1), tokens)
    started = time.perf_counter()
    kept = sum(batch.num_rows for batch, _ in paraphraser.run([rows]))
    assert kept == CAPTIONS
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    rows = captions()
    with tempfile.TemporaryDirectory() as folder:
        first = one_pass(rows, Path(folder))
        cached = statistics.median(one_pass(rows, Path(folder)) for _ in range(3))
    record("cached_pass", CAPTIONS / cached, "captions/s", "the pass that asked an instant engine", first / cached)


if __name__ == "__main__":
    main()
