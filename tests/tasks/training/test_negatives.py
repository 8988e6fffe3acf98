"""Captions with hard negatives: what teaches, of which captions, and in which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import NegativeOptions, Settings
from paraclip_core.errors import TrainingError
from paraclip_core.training.data import TrainingRows
from paraclip_core.training.negatives import rule_negative
from storage.parquet import write_table
from tasks.stages.training import FINETUNE
from tasks.training.data import HeldOut, TextTokens
from tasks.training.negatives import negative_rows

IMAGES = ["a", "held out", "b"]
CAPTIONS = [
    ("a", "two dogs run", "train"),
    ("held out", "a red cup", "train"),
    ("no features", "a red car", "train"),
    ("b", "a hat, hardly more", "train"),
    ("b", "a blue hat", "val"),
    ("b", "a blue box", "train"),
]
REJECTS = [
    (0, "changed_number", "says 3, which the input does not", "three dogs run"),
    (0, "changed_number", "says 3, which the input does not", "three dogs run"),
    (0, "changed_number", "lost 2", "dogs run"),
    (0, "echo", "repeats its input", "two dogs run"),
    (1, "changed_colour", "says blue, which the input does not", "a blue cup"),
    (3, "changed_negation", "negation came or went", "no hat"),
    (3, "changed_relation", "says on hat, which the input does not", None),
]


def caption_id(number: int) -> bytes:
    return bytes([255 - number] * 16)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Captions, and rejects of a step."""
    ids = pa.array([caption_id(number) for number in range(len(CAPTIONS))], pa.binary(16))
    images, texts, splits = zip(*CAPTIONS, strict=True)
    table = pa.table({"caption_id": ids, "image_id": images, "caption": texts, "split": splits})
    write_table(tmp_path / "captions" / "part-00000.parquet", table)
    numbers, reasons, details, answers = zip(*REJECTS, strict=True)
    ids = pa.array([caption_id(number) for number in numbers], pa.binary(16))
    table = pa.table({"caption_id": ids, "reason": reasons, "detail": details, "answer": answers})
    write_table(tmp_path / "rejects" / "part-00000.parquet", table)
    return tmp_path / "captions", tmp_path / "rejects"


def made(folders: tuple[Path, Path], tokens: TextTokens | None = None, **options: Any) -> TrainingRows:
    def find(ids: pa.Array) -> np.ndarray:
        found = pc.call_function("index_in", [ids], pc.SetLookupOptions(pa.array(IMAGES)))
        return np.asarray(found.fill_null(-1), np.int64)

    held_out = SimpleNamespace(images=SimpleNamespace(find=find), trains=lambda rows: rows != 1)
    folder = folders[0].parent / f"rows-{sorted(options.items())}-{tokens is None}"
    chosen = NegativeOptions(weight=1, **options)
    return negative_rows(
        folder, folders[0], [folders[1]], cast(HeldOut, held_out), tokens or TextTokens(), chosen, context_length=77
    )


def texts(rows: TrainingRows, kind: str) -> list[list[int]]:
    tokens = rows.texts[kind]
    return [tokens.values[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


def encoded(some: Sequence[str]) -> list[list[int]]:
    return Tokenizer(77).encode_batch(list(some)).to_pylist()


def test_rejects_that_say_something_else_teach(folders: tuple[Path, Path]) -> None:
    rows = made(folders, rules=False)
    assert texts(rows, "positive") == encoded(["two dogs run", "a hat, hardly more"])
    assert texts(rows, "negative") == encoded(["three dogs run", "no hat"])
    assert rows.image_rows.tolist() == [0, 2]
    assert rows.facts == {
        "changed_number": 1, "changed_colour": 0, "changed_relation": 0, "changed_negation": 1, "rules": 0
    }  # fmt: skip


def test_rules_teach_where_they_find_a_word(folders: tuple[Path, Path]) -> None:
    rows = made(folders, rejects=False)
    expected = [rule_negative(text) for text in ("two dogs run", "a blue box")]
    assert texts(rows, "negative") == encoded([negative[1] for negative in expected if negative is not None])
    assert rows.facts["rules"] == 2
    assert len(made(folders)) == 4


def test_a_base_with_a_tokenizer_of_its_own_gets_its_tokens(folders: tuple[Path, Path]) -> None:
    own = TextTokens(True, lambda column: pa.array([[len(text.as_py()), 9] for text in column], pa.list_(pa.int32())))
    assert texts(made(folders, own, rules=False), "negative") == [[14, 9], [6, 9]]


def test_no_negative_stops_the_run(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    table = pa.table({"caption_id": pa.array([], pa.binary(16)), "reason": [], "detail": [], "answer": []})
    strings = pa.schema([table.schema.field(0), *(pa.field(name, pa.string()) for name in table.column_names[1:])])
    write_table(folders[1] / "part-00000.parquet", table.cast(strings))
    with pytest.raises(TrainingError, match="no training caption has a hard negative"):
        made(folders, rules=False)


def test_rejects_of_both_steps_are_read_where_they_teach() -> None:
    assert "paraphrase_1" not in FINETUNE.inputs(Settings())
    weighted = Settings.model_validate({"finetune": {"negatives": {"weight": 1}}})
    assert FINETUNE.inputs(weighted)[:3] == ("ingest", "paraphrase_1", "paraphrase_2")
    ruled = Settings.model_validate({"finetune": {"negatives": {"weight": 1, "rejects": False}}})
    assert FINETUNE.inputs(ruled) == FINETUNE.inputs(Settings())
