"""The size of the code base: lines by folder, words for readers, options, imports, and the kinds of its lines.

    python benchmarks/house.py [--rev REVISION] [--json]

Product: every Python file of the packages and the front door, `paraclip/*.py`. An option is a field of the
settings that holds no group; a group in two places counts twice. A lazy import stands in a function. A circle is a
strongly connected component of the modules' imports, those in functions and under `TYPE_CHECKING` included. Words for
readers are those of the Markdown files below `docs/`. With `--rev`, a copy of another revision is measured.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import shutil
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
PRODUCT = ("flows", "tasks", "storage", "paraclip_core", "paraclip/*.py")
COUNT_OPTIONS = """
from typing import get_args
from paraclip_core.config import Settings
def groups(kind):
    return [kind] if hasattr(kind, 'model_fields') else [group for part in get_args(kind) for group in groups(part)]
def leaves(group):
    inner = [groups(field.annotation) for field in group.model_fields.values()]
    return sum(sum(map(leaves, some)) if some else 1 for some in inner)
print(leaves(Settings))
"""


def files_in(home: Path, *places: str) -> list[Path]:
    """Python files of folders, or of a pattern."""
    return [file for p in places for file in sorted(home.glob(p) if p.endswith(".py") else (home / p).rglob("*.py"))]


def kinds(file: Path) -> list[str]:
    """The kind of each line: docstring, import, comment, blank or code."""
    text = file.read_text(encoding="utf-8")
    of_line = ["code" if line.strip() else "blank" for line in text.splitlines()]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            of_line[token.start[0] - 1] = "comment"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            kind = "import"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            kind = "docstring"
        else:
            continue
        of_line[node.lineno - 1 : node.end_lineno] = [kind] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return of_line


def imports(home: Path, files: list[Path]) -> dict[str, set[str]]:
    """The product's modules that each of its modules imports anywhere in its text."""
    names = {".".join(file.relative_to(home).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= inner & names.keys() or {node.module}
        graph[name] = (targets & names.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that all reach each other."""

    def reached(start: str) -> set[str]:
        seen, pending = {start}, [start]
        while pending:
            pending += (new := graph[pending.pop()] - seen)
            seen |= new
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def lazy_imports(file: Path) -> int:
    """Import statements in functions, each counted once."""
    functions = [
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = (node for function in functions for node in ast.walk(function))
    return len({node for node in inside if isinstance(node, ast.Import | ast.ImportFrom)})


def measure(home: Path) -> dict[str, object]:
    """Every figure of the checkout at `home`."""
    product = files_in(home, *PRODUCT)
    options = subprocess.check_output([sys.executable, "-c", COUNT_OPTIONS], cwd=home)
    of_line = [kind for file in product for kind in kinds(file)]
    pages = sorted((home / "docs").rglob("*.md"))
    return {
        "product": {"lines": len(of_line), "files": len(product)},
        **{place: lines_of(files_in(home, place)) for place in (*PRODUCT, "tests", "benchmarks")},
        "words": sum(len(page.read_text(encoding="utf-8").split()) for page in pages),
        "lazy imports": sum(map(lazy_imports, product)),
        "options": int(options),
        "circles": circles(imports(home, product)),
        "kinds": {kind: of_line.count(kind) for kind in ("code", "docstring", "blank", "import", "comment")},
    }


def lines_of(files: list[Path]) -> int:
    """Number of lines of the files together."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rev", help="revision to measure; default: the files as they are")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.rev:
            subprocess.run(["git", "archive", "-o", f"{folder}/copy.tar", arguments.rev], cwd=HOME, check=True)
            shutil.unpack_archive(f"{folder}/copy.tar", folder, filter="data")
        figures = measure(Path(folder) if arguments.rev else HOME)
    print(json.dumps(figures) if arguments.json else "\n".join(f"{name:20} {figures[name]}" for name in figures))


if __name__ == "__main__":
    main()
