"""What end-to-end tests share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]
from tiny_run import served, tiny_run, written  # pyright: ignore[reportMissingImports]

# `served` is importable by its neighbors.
sys.path.insert(0, str(Path(__file__).parent))

RUN = """
import json, sys
from pathlib import Path
import paraclip

settings, folder = paraclip.Settings.model_validate_json(sys.argv[1]), Path(sys.argv[2])
planned = paraclip.plan(settings)
assert {row["state"] for row in planned} == {"to run"}, planned.rows
result = paraclip.run(settings)
assert result.verdict in ("promote", "hold") and len(result) and result.report.is_file()
assert list(paraclip.run(settings)) == list(result)
(folder / "result.html").write_text(result._repr_html_())
"""


@dataclass(frozen=True)
class Finished:
    """A run of every stage, control included, by `paraclip.run`."""

    folder: Path
    """Has the root, what the process said (`said.txt`), and its result as a notebook shows it (`result.html`)."""
    settings: dict[str, Any]

    @property
    def root(self) -> Path:
        return self.folder / "root"


@pytest.fixture(scope="session")
def finished(shared_folder: Callable[[str, Callable[[Path], object]], Path]) -> Finished:
    """One for the session, which its tests only read."""

    def fill(folder: Path) -> None:
        with OpenAIServer() as server, (folder / "said.txt").open("w") as said:
            server.answer = written
            settings = tiny_run(folder / "root", served(server.url))
            settings["evaluate"]["control"] = True
            (folder / "settings.json").write_text(json.dumps(settings))
            command = [sys.executable, "-c", RUN, json.dumps(settings), str(folder)]
            done = subprocess.run(command, stdout=said, stderr=said, timeout=3000, check=False)
        assert done.returncode == 0, (folder / "said.txt").read_text()

    folder = shared_folder("finished", fill)
    return Finished(folder, json.loads((folder / "settings.json").read_text()))
