"""What the docs site adds to docs/: the README as its home, and references written from the code.

A hook of MkDocs; `make docs` builds the site. Pages keep the links that work on a repository's own pages, so links to
files outside of docs/ become plain text here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import paraclip
from paraclip.flows.cli import app
from paraclip_core.settings import describe_options

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
TABLE_HEAD = "|---|---|---|"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold."""
    pages = {page: (REPOSITORY / source).read_text("utf-8") for source, page in ROOT_PAGES.items()}
    pages |= {
        "decisions/index.md": "\n".join(_decisions()),
        "reference/commands.md": "\n".join(["# Commands", *_commands(app, ("paraclip",))]),
        "reference/options.md": "\n".join(_options()),
        "reference/python.md": "\n".join(_python()),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's own pages, and leave only the label of those that lead out of it."""
    at_root = page.file.src_uri in ROOT_PAGES.values()

    def site_link(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        # As seen from the repository's root.
        path = path if at_root else path.removeprefix("../") if path.startswith("../") else f"docs/{path}"
        linked = "decisions/index.md" if path == "docs/decisions" else ROOT_PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(linked) is None and not path.startswith("docs/"):
            return f'<span title="in the repository: {path}">{label}</span>'
        return f"[{label}]({linked}{hash_}{anchor})"

    if "/" in page.file.src_uri:
        return markdown
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)", site_link, markdown)


def _decisions() -> Iterator[str]:
    yield "# Decisions\n"
    for path in sorted((REPOSITORY / "docs" / "decisions").glob("*.md")):
        yield f"- [{path.read_text('utf-8').splitlines()[0].lstrip('# ')}]({path.name})"


def _commands(command: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Each command with its arguments and options, as its --help has them."""
    below = getattr(command, "commands", {})
    command = command if below else command.load()
    if not below or len(names) == 1:
        title = "Before every command" if len(names) == 1 else " ".join(names)
        yield f"\n## {title}\n\n{_prose(command.help or '')}\n\n| option | meaning | default |\n{TABLE_HEAD}"
        yield from (_parameter(parameter) for parameter in command.params if parameter.name != "help")
    for name, inner in below.items():
        yield from _commands(inner, (*names, name))


def _parameter(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    name = ", ".join(parameter.opts) if is_option else (parameter.metavar or parameter.name.upper())
    default = parameter.default if isinstance(parameter.default, int | float | str) else None
    value = "required" if parameter.required else f"`{default}`" if default else ""
    variable = f" ({parameter.envvar})" if parameter.envvar else ""
    return f"| `{name}` | {_cell((parameter.help or '') + variable)} | {value} |"


def _options() -> Iterator[str]:
    yield "# Options\n\nEvery option of a configuration; `--set` takes the same names. A list's item is `0`."
    group = ""
    for path, kind, default, text in describe_options():
        if path.partition(".")[0] != group:
            group = path.partition(".")[0]
            yield f"\n## {group}\n\n| option | meaning | type, default |\n{TABLE_HEAD}"
        yield f"| `{path}` | {_cell(text)} | `{kind}`, `{default}` |"


def _python() -> Iterator[str]:
    yield "# Python\n"
    yield f"{_prose((paraclip.__doc__ or '').partition(chr(10))[0])}\n"
    for name in sorted(set(paraclip.__all__) - {"Settings"}, key=lambda name: (name[0].isupper(), name)):
        yield f"::: paraclip.{name}\n"


def _cell(text: str) -> str:
    return _prose(text).replace("\n", " ")


def _prose(text: str) -> str:
    """Text whose signs mean nothing to Markdown but between backquotes, where they mean nothing anyway."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"[<|*_\[]", lambda sign: f"&#{ord(sign.group())};", part) for part in parts[::2]]
    return "`".join(parts)
