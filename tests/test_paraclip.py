"""The Python interface, in a process that must not import Prefect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]
from tiny_run import served, tiny_run, written  # pyright: ignore[reportMissingImports]

import paraclip
from paraclip_core.errors import ConfigError

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
hits = paraclip.search("a red ball", name, root=root, count=3)
assert [row["rank"] for row in hits] == [1, 2, 3]
audited = paraclip.audit(name, [("a red ball", "a ball that is red")], root=root)
assert {row["model"] for row in audited} == {"base", "tuned", "difference"}
assert paraclip.export(name, folder, root=root)
assert paraclip.load(folder).embed_dim == paraclip.load(name, root=root).embed_dim
assert "prefect" not in sys.modules
print(result._repr_html_())
"""


def test_tables_show_themselves_and_become_data_frames() -> None:
    table = paraclip.Table([{"a": 1.23456, "b": "<b>"}, {"a": None, "c": 2}], "<title>")
    html = table._repr_html_()
    assert "1.23" in html and "&lt;b&gt;" in html and "&lt;title&gt;" in html and "<b>" not in html
    frame = table.to_pandas()
    assert list(frame.columns) == ["a", "b", "c"] and len(frame) == len(table) == 2


def test_a_run_that_is_not_finished_cannot_be_compared(tmp_path: Path) -> None:
    settings = paraclip.load_config(None, [f"run.root={tmp_path}", "data.scenes.images=30"])
    with pytest.raises(ConfigError, match=r"call run\(\) first"):
        paraclip.compare(settings)
    with pytest.raises(ConfigError, match=r"finetune\.epoch"):
        paraclip.load_config(None, ["finetune.epoch=3"])


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
