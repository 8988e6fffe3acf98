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
    "wrong column",
    "empty caption",
    "1 MB caption",
    "invalid UTF-8",
    "captions that are prompts",
    "HTML and path traversal in names",
    "corrupt image",
    "NaN features",
    "truncated checkpoint",
    "edited artifact",
    "wrong option type",
    "unknown option",
    "full disk",
    "read-only root",
    "two runs of one fingerprint at once",
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> dict[str, list[str]]:
    """The table's cells by the first of each row, head and rule left out."""
    lines = (ROOT / "docs" / "bad-input.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells[2:]}


def test_every_kind_of_bad_input_has_a_full_row() -> None:
    table = rows()
    assert sorted(table) == sorted(INPUTS)
    for name, cells in table.items():
        assert len(cells) == 4 and all(cells), name
        assert "`" in cells[2], f"{name}: no message"


@pytest.mark.parametrize("name", INPUTS)
def test_the_tests_of_a_row_exist(name: str) -> None:
    cell = rows()[name][-1]
    tests = TEST.findall(cell)
    assert tests and not TEST.sub("", cell).strip(), f"expected `path::name` only, found {cell}"
    for path, function in tests:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{function}"
