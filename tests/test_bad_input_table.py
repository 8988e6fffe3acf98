"""docs/bad-input.md: every kind of bad input has its row, and every row names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    assert sorted(table) == sorted(rows(tests=True)) and len(table) > 30
    for name, cells in table.items():
        assert len(cells) == 3 and all(cells), name
        assert "`" in cells[2], f"{name}: no message"


@pytest.mark.parametrize("name", rows(tests=True))
def test_the_tests_of_a_row_exist(name: str) -> None:
    (cell,) = rows(tests=True)[name]
    tests = TEST.findall(cell)
    assert tests and not TEST.sub("", cell).strip(), f"expected `path::name` only, found {cell}"
    for path, function in tests:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{function}"
