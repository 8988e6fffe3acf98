"""The whole Python interface, in a process that must not import Prefect."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]
from tiny_run import served, tiny_run, written  # pyright: ignore[reportMissingImports]

RUN = """
import json, sys
import paraclip

tree, root, folder = json.loads(sys.argv[1]), *sys.argv[2:]
settings = paraclip.Settings.model_validate(tree)
planned = paraclip.plan(settings)
assert {row["state"] for row in planned} == {"to run"}, planned.rows
result = paraclip.run(settings)
assert result.verdict in ("promote", "hold") and len(result) and result.report.is_file()
assert set(paraclip.plan(settings).to_pandas()["state"]) == {"cached"}
assert list(paraclip.compare(settings)) == list(result)
name = settings.name
found = paraclip.audit(name, root=root)
assert "ao@10, another caption" in {row["metric"] for row in found}, found
hits = paraclip.search("a red ball", name, root=root, count=3)
assert [row["rank"] for row in hits] == [1, 2, 3]
audited = paraclip.audit(name, [("a red ball", "a ball that is red")], root=root)
assert {row["model"] for row in audited} == {"base", "tuned", "difference"}
tried = paraclip.paraphrase(["a red ball on a table", "a"], settings)
assert [(row["caption"], bool(row["paraphrase_2"])) for row in tried] == [("a red ball on a table", True), ("a", False)]
assert paraclip.export(name, folder, root=root)
assert paraclip.load(folder).embed_dim == paraclip.load(name, root=root).embed_dim
assert "prefect" not in sys.modules
print(result._repr_html_())
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_every_function_without_prefect(tmp_path: Path) -> None:
    with OpenAIServer() as server:
        server.answer = written
        tree = tiny_run(tmp_path / "root", served(server.url))
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(tree), str(tmp_path / "root"), str(tmp_path / "exported")],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "<table>" in done.stdout
    assert re.search(r"^finetune: made, \d+ s$", done.stderr, re.MULTILINE), "its progress"
