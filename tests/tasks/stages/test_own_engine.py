"""The engine of docs/engines.md, which lives outside of the package and is named in the settings alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from paraclip.storage.parquet import read_table
from paraclip_core.settings import parse_settings
from tests.kit.small_runs import both_steps, made

GUIDE = Path(__file__).parents[3] / "docs" / "engines.md"


def blocks(language: str) -> list[str]:
    """The guide's blocks of code that tell of the command engine."""
    matches = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
    return [block for block in matches if "CommandEngine" in block]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's module and captions; the command that it asks is a script."""
    (tmp_path / "my_engine.py").write_text(blocks("python")[0])
    (tmp_path / "captions.txt").write_text("a dog on a beach\ntwo kids on a swing\n")
    command = tmp_path / "ollama"
    command.write_text('#!/bin/sh\n[ "$1 $2" = "run llama3.2" ] || exit 3\nread prompt\necho "$prompt" | md5sum\n')
    command.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delitem(sys.modules, "my_engine", raising=False)
    return tmp_path


def test_the_guides_engine_paraphrases(folder: Path) -> None:
    tree = yaml.safe_load(blocks("yaml")[0])
    tree["paraphrase"]["filters"] = {"preset": "off"}
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    settings = parse_settings({**tree, "data": data, "run": {"root": str(folder / "root")}})
    first, second = both_steps(settings)
    rows = read_table(second.path / "paraphrases").to_pylist()
    assert [row["caption"] for row in rows] == ["a dog on a beach", "two kids on a swing"]
    assert len({row[name] for row in rows for name in ("paraphrase_1", "paraphrase_2")}) == 4
    assert (first.manifest.metrics["engine"], first.manifest.metrics["model"]) == (
        "command",
        "ollama run llama3.2@2026-11",
    )
    # Another artifact from the same requests asks for nothing.
    again = {**tree["paraphrase"], "fraction": 0.999999}
    settings = parse_settings({"paraphrase": again, "data": data, "run": {"root": str(folder / "root")}})
    assert made("paraphrase_1", settings).manifest.metrics["generated"] == 0
