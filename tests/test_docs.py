"""README and docs/: what they link to, name and call exists, and their lines fit a screen."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from markdown_it import MarkdownIt
from pydantic import BaseModel
from typer.main import get_command

from paraclip.flows.cli import app
from paraclip_core.config import Settings

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")})
USER_PAGES = [
    page for page in PAGES if page.parent.name != "decisions" and page.name not in ("CHANGELOG.md", "experiments.md")
]
FOLDERS = "flows|tasks|paraclip_core|storage|tests|benchmarks|configs|docker|docs"
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
of_user = pytest.mark.parametrize("page", USER_PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The headings' anchors as GitHub makes them."""
    tokens = MarkdownIt().parse(page.read_text())
    titles = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def code(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    yield from (
        (token.info.strip(), token.content) for token in MarkdownIt().parse(page.read_text()) if token.type == "fence"
    )


@by_name
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@of_user
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]+\.\w+)", page.read_text()):
        assert (REPOSITORY / name).exists() or Path(name).stem == "mine", name


def fields(kind: Any) -> Iterator[type[BaseModel]]:
    """The option models in a field's type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from fields(part)


def is_option(names: list[str], models: list[type[BaseModel]]) -> bool:
    """Whether a path of names leads to an option; below one that is not a model any name does."""
    if not names or not models:
        return True
    matching = [model.model_fields[names[0]] for model in models if names[0] in model.model_fields]
    return any(is_option(names[1:], list(fields(field.annotation))) for field in matching)


def leaves(value: Any, names: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Paths of names in a YAML document; lists are passed through."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*names, str(name)))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, names)
    else:
        yield list(names)


@of_user
def test_options_exist(page: Path) -> None:
    paths = [path.split(".") for path in re.findall(r"--set ([a-z_\d.]+)=", page.read_text())]
    for language, text in code(page):
        document = yaml.safe_load(text) if language == "yaml" else None
        if isinstance(document, dict) and document.keys() & Settings.model_fields.keys():
            paths += leaves(document)
    for path in paths:
        if path == ["finetune", "lerning_rate"]:  # the page shows its error
            continue
        assert is_option(path, [Settings]), ".".join(path)


@of_user
def test_commands_exist(page: Path) -> None:
    blocks = "".join(text for language, text in code(page) if language == "bash")
    lines = [*blocks.splitlines(), *re.findall(r"`([^`\n]+)`", page.read_text())]
    rules = re.findall(r"^([a-z][\w -]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    targets = {name for rule in rules for name in rule.split()}
    for line in lines:
        program, *words = line.split("#")[0].split("|")[0].split() or [""]
        if program == "make" and words and "=" not in words[0]:
            assert any(fnmatch(target, words[0]) for target in targets), line
        if program == "paraclip" and words and words[0] != "…":
            assert_command(words, line)


def assert_command(words: list[str], line: str) -> None:
    """The command and its options are those of the command line."""
    command: Any = get_command(app)
    while words and words[0].startswith("-"):
        assert {words.pop(0)} <= {option for parameter in command.params for option in parameter.opts}, line
    while (commands := getattr(command, "commands", None)) and words:
        assert words[0] in commands, line
        command = commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, line


def test_every_file_has_its_story_in_the_design() -> None:
    house = runpy.run_path(str(REPOSITORY / "benchmarks" / "house.py"))
    page = (REPOSITORY / "docs" / "design.md").read_text()
    assert house["with_stories"](page, REPOSITORY) == page, "python benchmarks/house.py --stories renews it"
