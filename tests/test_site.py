"""The docs site builds without a warning and has a reference of all that the code offers."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import paraclip
from paraclip_core.settings import describe_options

REPOSITORY = Path(__file__).parents[1]
COMMANDS = ("paraclip run", "paraclip cache export", "--install-completion", "--require-work", "PARACLIP_ROOT")


@pytest.mark.skipif(not find_spec("mkdocs"), reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_and_its_references_are_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "recall.svg" in (tmp_path / "index.html").read_text() and (tmp_path / "tour.ipynb").is_file()
    pages = {name: text_of(tmp_path / "reference" / name / "index.html") for name in ("options", "commands", "python")}
    assert [path for path, *_ in describe_options() if path not in pages["options"]] == []
    assert [words for words in COMMANDS if words not in pages["commands"]] == []
    assert [name for name in paraclip.__all__ if name not in pages["python"]] == []
    assert "Raises" in pages["python"] and "BenchmarkError" in pages["python"]
    source = "".join(path.read_text() for path in tmp_path.rglob("*.html"))
    fetched = re.findall(r'<(?:link[^>]+stylesheet[^>]+href|script[^>]+src|img[^>]+src)="(https?:[^"]+)', source)
    assert fetched == [], "the site works without a network"


def text_of(page: Path) -> str:
    """A page's text without tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))
