"""The Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest

import paraclip
from paraclip_core.errors import ConfigError


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
