"""What the tests of the loop share: a cache in memory and an engine that counts what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import GateOptions, SamplingOptions
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.prompts import FEW_SHOT
from paraclip_core.paraphrase.protocol import Completion, Engine, Prompt
from paraclip_core.paraphrase.similarity import SentenceEncoder
from paraclip_core.tables import GENERATIONS, text_hash


class MemoryCache:
    """The cache protocol over a dict."""

    def __init__(self) -> None:
        self.rows: dict[bytes, list[str]] = {}
        self.appends = 0

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        known = [key for key in dict.fromkeys(keys.to_pylist()) if key in self.rows]
        answers = pa.array([self.rows[key] for key in known], pa.list_(pa.string()))
        return pa.table({"key": pa.array(known, pa.binary(16)), "completions": answers})

    def append(self, generations: pa.Table) -> None:
        assert generations.schema == GENERATIONS
        self.appends += 1
        for row in generations.to_pylist():
            self.rows.setdefault(row["key"], row["completions"])


class CountingEngine:
    """Passes prompts on and remembers their texts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def model(self) -> str:
        return self._engine.model

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        self.asked += [prompt.text for prompt in prompts]
        return self._engine.generate(prompts, sampling)

    def close(self) -> None:
        self._engine.close()


def captions_batch(texts: Sequence[str]) -> pa.RecordBatch:
    """Rows as ingest gives them."""
    ids = pa.array([text_hash(str(number), text) for number, text in enumerate(texts)], pa.binary(16))
    columns = [
        ids,
        pa.array([f"image{number}" for number in range(len(texts))]),
        pa.array(texts, pa.string()),
        Tokeniser().encode_batch(texts),
        pa.array(["CC0"] * len(texts)),
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(INPUT_COLUMNS[1]))


def shipped_chooser(step: int, encoder: SentenceEncoder) -> Chooser:
    """The gates of a step for small models, as the stages make them."""
    whole = Tokeniser(context_length=4096)
    return Chooser(
        GateOptions(preset="small-model"),
        step,
        encoder=encoder,
        examples=FEW_SHOT[step].examples,
        pieces=lambda text: len(whole.encode(text)) - 2,
    )


@pytest.fixture(scope="session")
def chooser_of() -> Callable[[int, SentenceEncoder], Chooser]:
    """Step and sentence encoder → the gates for small models."""
    return shipped_chooser


@pytest.fixture
def cache() -> MemoryCache:
    """An empty cache."""
    return MemoryCache()


@pytest.fixture
def counting() -> type[CountingEngine]:
    """The engine wrapper."""
    return CountingEngine


@pytest.fixture
def rows_of() -> Callable[[Sequence[str]], pa.RecordBatch]:
    """Texts → rows as ingest gives them."""
    return captions_batch


@pytest.fixture
def written_paraphrases(tmp_path: Path) -> Path:
    """A CSV with two paraphrases of each of 200 captions."""
    lines = ["caption,paraphrase_1,paraphrase_2"]
    for number in range(200):
        colour, place = ("red", "blue", "green", "black")[number % 4], ("beach", "street", "field")[number % 3]
        lines.append(
            f"photo {number} of a {colour} dog on the {place},dog {number} in {colour} on a {place},"
            f"puppy {number} in {colour} at the {place}"
        )
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
