"""pyproject.toml names what the product imports, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PRODUCT = ("flows", "tasks", "paraclip_core", "storage")
SOURCES = [path for folder in PRODUCT for path in (REPOSITORY / folder).rglob("*.py")]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PARTS = {"pydantic-core": "pydantic"}
"""Modules that are part of another distribution's own interface."""


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(lines: list[str]) -> set[str]:
    """Names of requirements."""
    return {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines}


@cache
def imported() -> set[str]:
    """Distributions whose modules the product imports, wherever the import stands."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"paraclip", "paraclip_core", ""}
    owners = packages_distributions()
    distributions = {normal(owners[module][0]) if module in owners else normal(module) for module in modules}
    return {PARTS.get(name, name) for name in distributions}


def test_what_is_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    everything = declared(PROJECT["dependencies"]).union(*map(declared, extras.values()))
    assert imported() - everything == set()


def test_what_is_declared_is_imported() -> None:
    assert declared(PROJECT["dependencies"]) - imported() == set()


def test_what_an_extra_brings_is_imported_or_named() -> None:
    """Packages that hold a model are named; fsspec, torch and Prefect import the others for us."""
    text = "\n".join(path.read_text() for path in SOURCES).replace("_", "-").lower()
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
    for name in set().union(*map(declared, extras.values())) - {"s3fs"}:
        assert name in imported() or name in text, name


def test_the_package_s_folders_are_the_links() -> None:
    # A link: whoever edits files by a script makes a copy of it, which then grows old.
    for name in ("flows", "tasks", "storage"):
        assert (REPOSITORY / "paraclip" / name).resolve() == REPOSITORY / name
