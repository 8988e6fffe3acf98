"""Where benchmarks find real data."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
spec = importlib.util.spec_from_file_location("benchmark_record", BENCHMARKS / "record.py")
assert spec is not None and spec.loader is not None
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


def test_real_data_is_where_the_environment_says_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARACLIP_DATA", raising=False)
    assert record.data_folder("flickr8k") is None
    monkeypatch.setenv("PARACLIP_DATA", str(tmp_path))
    assert record.data_folder("flickr8k") is None
    (tmp_path / "flickr8k").mkdir()
    assert record.data_folder("flickr8k") == tmp_path / "flickr8k"


def test_no_benchmark_has_a_default_of_its_own() -> None:
    for path in BENCHMARKS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "record.py" or 'environ.get("PARACLIP_DATA"' not in text, path
