"""docs/bad-input.md: every kind of bad input has its row, and every row names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INPUTS = [
    "missing file",
    "corrupt Parquet",
    "tar cut short",
    "tar whose samples are not whole",
    "table with another separator, or read as plain text",
    "wrong column",
    "bad rows in a file of paraphrases",
    "file that changes while a stage reads it",
    "empty caption",
    "1 MB caption",
    "invalid UTF-8",
    "image id that two sources give to different images",
    "captions that are prompts",
    "HTML and path traversal in names",
    "corrupt image",
    "Parquet whose pictures are absent or damaged",
    "NaN features",
    "index of your own that does not fit",
    "truncated checkpoint",
    "weights that are NaN or infinite",
    "mistyped base model",
    "model file with code in it (pickle, TorchScript, tokenizer)",
    "edited artifact",
    "wrong option type",
    "unknown option",
    "full disk",
    "read-only root",
    "lost or changed object of a root on an object store",
    "disk or network folder with errors",
    "root that cannot be opened or reached",
    "paraphrase server that misbehaves (429, 5xx, hang, reset, half a body, wrong JSON, nonsense)",
    "damaged or foreign lines of a batch file",
    "two runs of one fingerprint at once",
    "name, root, folder or file on the command line that is not there",
    "benchmark with too few images",
    "no caption of the split that is evaluated",
    "no caption of the training split",
    "validation images or captions that are trained on, too",
    "rollback to a model whose artifact is gone",
    "source without images",
    "images that are not where captions say",
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows(tests: bool) -> dict[str, list[str]]:
    """Cells by the first of each row, heads and rules left out: of the last section's table, or of all the others."""
    told, listed = (ROOT / "docs" / "bad-input.md").read_text(encoding="utf-8").split("\n## Tests\n")
    lines = (listed if tests else told).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    found = [row for row in cells if row[0] != "input" and set(row[0]) != {"-"}]
    assert len({row[0] for row in found}) == len(found), "a row is there twice"
    return {row[0]: row[1:] for row in found}


def test_every_kind_of_bad_input_has_a_full_row() -> None:
    table = rows(tests=False)
    assert sorted(table) == sorted(INPUTS) == sorted(rows(tests=True))
    for name, cells in table.items():
        assert len(cells) == 3 and all(cells), name
        assert "`" in cells[2], f"{name}: no message"


@pytest.mark.parametrize("name", INPUTS)
def test_the_tests_of_a_row_exist(name: str) -> None:
    (cell,) = rows(tests=True)[name]
    tests = TEST.findall(cell)
    assert tests and not TEST.sub("", cell).strip(), f"expected `path::name` only, found {cell}"
    for path, function in tests:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{function}"
