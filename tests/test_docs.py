"""README, docs/ and dev/: what they link to, name and call exists, and figures stand in the lab book."""

from __future__ import annotations

import re
import shlex
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from prefect.cli._app import _app as prefect
from pydantic import BaseModel

from paraclip.flows.cli import app
from paraclip_core.config import Settings

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("dev/**/*.md")})
USER_PAGES = [page for page in PAGES if page.parent.name not in ("decisions", "log") and page.name != "CHANGELOG.md"]
FOLDERS = "flows|tasks|paraclip_core|storage|tests|benchmarks|configs|docker|docs|dev"
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
of_user = pytest.mark.parametrize("page", USER_PAGES, ids=lambda page: page.name)


def anchor(title: str) -> str:
    """A heading's anchor as GitHub makes it."""
    title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    tokens = MarkdownIt().parse(page.read_text())
    return {anchor(tokens[at + 1].content) for at, token in enumerate(tokens) if token.type == "heading_open"}


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


SHELL = {"cd", "cp", "export", "mkdir", "pip", "source", "tar", "unset"}
"""Programs that a block of `bash` may have beside ours; a block of `sh` may have any."""
TESTED = {"clip-retrieval": "tests/paraclip_core/clip/test_export.py"}
"""Programs whose commands another test reads from the page."""


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without variables before it; not what a here-document holds."""
    block = re.sub(r"<<(\w+)\n.*?\n\1$", "", block, flags=re.DOTALL | re.MULTILINE)
    block = re.sub(r"\$\([^()]*\)", "VALUE", block)
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += "$…@,{}[]:!%^+"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield from [words] if words else []
                words = []
            elif words or not re.match(r"[A-Za-z_0-9]+=", word):
                words.append(word)


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][\w -]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    return {name for rule in rules for name in rule.split()}


@of_user
def test_commands_are_accepted(page: Path) -> None:
    for language, text in code(page):
        if language not in ("bash", "sh"):
            continue
        for program, *words in commands(text):
            line = shlex.join([program, *words])
            if program == "paraclip":
                assert_accepted(words, line)
            elif program == "make":
                assert any(fnmatch(target, word) for target in make_targets() for word in words), line
            elif program == "prefect":
                # Prefect's command line, which is pinned to a minor version, parses it without running it.
                prefect.parse_args(words, exit_on_error=False, print_error=False)
            elif program in ("python", ".venv/bin/python"):
                assert_script(words, line)
            else:
                assert language == "sh" or program in SHELL | TESTED.keys(), f"only a block of sh may have: {line}"


def assert_accepted(words: list[str], line: str) -> None:
    """The command line takes these words: its command, options and arguments, all that are required."""
    command = app
    while True:
        context = command.context_class(command)
        given, words, _ = command.make_parser(context).parse_args(args=list(words))
        if "--help" in line.split():
            return
        if not getattr(command, "commands", None):
            break
        command = loaded(command.commands[words.pop(0)])
    assert not words, line
    missing = [
        option.name for option in command.params if option.required and not option.envvar and not given.get(option.name)
    ]
    assert not missing, f"{line}: {missing}"


def loaded(command: Any) -> Any:
    """A group itself, or a command with its options."""
    return command if hasattr(command, "commands") else command.load()


def assert_script(words: list[str], line: str) -> None:
    """The script or module is there, and a script names the options."""
    if words[0] == "-m":
        assert find_spec(words[1]), line
    else:
        script = (REPOSITORY / words[0]).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in script] == [], line


@of_user
def test_named_commands_exist(page: Path) -> None:
    for line in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)):
        program, *words = line.split("#")[0].split("|")[0].split() or [""]
        if program == "make" and words and "=" not in words[0]:
            assert any(fnmatch(target, words[0]) for target in make_targets()), line
        if program == "paraclip" and words and words[0] != "…":
            assert_command(words, line)
        if program == "python" and words and words[0].startswith("benchmarks/"):
            assert_script(words, line)


def assert_command(words: list[str], line: str) -> None:
    """The command and its options are those of the command line."""
    command = app
    while words and words[0].startswith("-"):
        assert words.pop(0) in {"--help", *(option for parameter in command.params for option in parameter.opts)}, line
    while (commands := getattr(command, "commands", None)) and words:
        assert words[0] in commands, line
        command = loaded(commands[words.pop(0)])
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, line


FIGURE = re.compile(r"[+−]\d+(?:\.\d+)?(?: ± \d+\.\d+)?(?: \[[+−][\d.]+, [+−][\d.]+\])?|\d+\.\d×")
"""A gain with what says how sure it is."""


def plain(text: str) -> str:
    return " ".join(text.replace("*", "").split())


def entries(page: Path) -> dict[str, str]:
    """The text below each heading of a page, as far as the next one of its level, by the heading's anchor."""
    text = page.read_text()
    heads = [(at.start(), len(at.group(1)), at.group(2)) for at in re.finditer(r"^(#+) (.*)$", text, re.MULTILINE)]
    ends = [
        min((at for at, deeper, _ in heads if at > start and deeper <= level), default=len(text))
        for start, level, _ in heads
    ]
    return {anchor(title): text[start:end] for (start, _, title), end in zip(heads, ends, strict=True)}


def missing_figures(text: str, source: str) -> list[str]:
    figures = FIGURE.findall(plain(text))
    return [figure for figure in figures if not re.search(rf"{re.escape(figure)}(?!\d|\.\d)", plain(source))]


RESULTS = REPOSITORY / "docs" / "results.md"
MEASURED = re.compile(r"(?<![\d.,\w/-])\d+\.\d{1,3}(?![\d.]*\.\d|\w)")
"""A number with a decimal point, which no page has unless it was measured; not a version of three parts."""
HELD_ELSEWHERE = {
    "filters.md": "the tables that benchmarks/filter_calibration.py prints",
    "paper.md": "the paper's own figures",
}


@of_user
def test_figures_stand_in_the_lab_book(page: Path) -> None:
    """By their digits; those of results.md, which the others quote, are held to the entry in the next test."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv \S+", "", page.read_text(), flags=re.DOTALL)
    book = plain("\n".join(month.read_text() for month in (REPOSITORY / "dev" / "log").glob("*.md")))
    if page.name not in HELD_ELSEWHERE:
        assert set(MEASURED.findall(plain(text))) - set(re.findall(r"(?<![\d.,])\d+\.\d+", book)) == set()
    assert [figure for figure in missing_figures(text, book) if "." in figure] == []


@pytest.mark.parametrize("title", re.findall(r"^##+ (.*)$", RESULTS.read_text(), re.MULTILINE))
def test_results_stand_in_the_lab_book(title: str) -> None:
    """Each row and paragraph with a figure links the entry that it comes from, or its section does."""
    own = re.split(r"^#+ ", entries(RESULTS)[anchor(title)], flags=re.MULTILINE)[1]

    def linked(text: str) -> str:
        links = re.findall(r"\.\./dev/log/([\w-]+\.md)#([^)]+)\)", text)
        return "\n".join(entries(REPOSITORY / "dev" / "log" / file)[name] for file, name in links)

    for block in re.split(r"\n\n|\n(?=[|-])", own):
        if FIGURE.search(plain(block)):
            assert missing_figures(block, linked(block) or linked(own)) == [], block


def test_figures_of_the_front_page_are_results() -> None:
    front, results = (REPOSITORY / "README.md").read_text(), RESULTS.read_text()
    assert missing_figures(front, results) == []
    assert FIGURE.findall("+4.1 [+3.4, +4.7]; +9.12 ± 0.34 and 9.8×") == ["+4.1 [+3.4, +4.7]", "+9.12 ± 0.34", "9.8×"]


def test_the_front_pages_figure_shows_the_results() -> None:
    svg, results = (REPOSITORY / "docs" / "recall.svg").read_text(), RESULTS.read_text().replace("−", "-")
    drawn = [[float(value) for value in row.split(" → ")] for row in re.findall(r">([\d.]+ → [\d. →]+)</text>", svg)]
    # Of each base the figure has captions, too, which the tables have not.
    for name, place in (("paraphrases", 1), ("short queries", 2)):
        tables = [row for row in results.splitlines() if row.startswith(f"| recall@10 of {name}")]
        for (before, *tuned), table in zip(drawn[place::3], tables, strict=True):
            gains = [float(gain) for gain in re.findall(r"\| ([+-]\d+\.\d+)", table)[-2:]]
            assert [value - before for value in tuned] == pytest.approx(gains, abs=0.11)


def test_flickr8ks_tar_is_made_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Flicker8k_Dataset").mkdir()
    Image.new("RGB", (50, 30), "red").save("Flicker8k_Dataset/1_a.jpg")
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    exec(page.partition("### Flickr8k\n")[2].partition("```python\n")[2].partition("```")[0], {})
    with tarfile.open("images_128.tar") as tar, Image.open(tar.extractfile("images/1_a.jpg") or "") as image:
        assert tar.getnames() == ["images/1_a.jpg"] and image.size == (128, 128)
