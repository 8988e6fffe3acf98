"""The whole Python interface over a finished run, in a process that must not import Prefect."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import served, written  # pyright: ignore[reportMissingImports]

USE = """
import sys
import paraclip

settings, asking = map(paraclip.Settings.model_validate_json, sys.argv[1:3])
folder = sys.argv[3]
name, root = settings.name, settings.run.root
assert set(paraclip.plan(settings).to_pandas()["state"]) == {"cached"}
audit = paraclip.audit(name, root=root)
assert "ao@10, another caption" in {row["metric"] for row in audit}, audit
hits = paraclip.search("a red ball", name, root=root, count=3)
assert [row["rank"] for row in hits] == [1, 2, 3]
audit = paraclip.audit(name, [("a red ball", "a ball that is red")], root=root)
assert {row["model"] for row in audit} == {"base", "tuned", "difference"}
tried = paraclip.paraphrase(["a red ball on a table", "a"], asking)
assert [(row["caption"], bool(row["paraphrase_2"])) for row in tried] == [("a red ball on a table", True), ("a", False)]
assert paraclip.export(name, folder, root=root)
assert paraclip.load(folder).embed_dim == paraclip.load(name, root=root).embed_dim
assert "prefect" not in sys.modules
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_every_function_without_prefect(finished: Any, tmp_path: Path, openai_server: Any) -> None:
    openai_server.answer = written
    asking = finished.settings | {"paraphrase": served(openai_server.url)}
    settings = [json.dumps(tree) for tree in (finished.settings, asking)]
    command = [sys.executable, "-c", USE, *settings, str(tmp_path / "exported")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "<table>" in (finished.folder / "result.html").read_text()
    assert re.search(r"^finetune: made, \d+ s$", (finished.folder / "said.txt").read_text(), re.MULTILINE), "progress"
