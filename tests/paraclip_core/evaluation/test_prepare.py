"""Names of benchmarks, on the command line and as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.errors import BenchmarkError, ConfigError
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import check_names, parse_benchmark, source_files


def test_names_on_the_command_line(tmp_path: Path) -> None:
    assert parse_benchmark("stsb=a/b=c.tsv") == BenchmarkOptions(name="stsb", kind="sts", path="a/b=c.tsv")
    assert parse_benchmark("mine:sts=x").kind == "sts"
    assert parse_benchmark("karpathy=x").kind == "retrieval"
    for wrong in ("stsb", "stsb=", "=x", "unheard=x", "a:b=x"):
        with pytest.raises(ConfigError, match="--benchmark"):
            parse_benchmark(wrong)
    with pytest.raises(BenchmarkError, match="does not exist"):
        source_files("sts", tmp_path / "absent")


@pytest.mark.parametrize("names", [("a", "a"), ("../a",), ("",), (".a",), ("a/b",), ("a" * 201,)])
def test_names_must_be_plain_and_distinct(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="name"):
        check_names([BenchmarkOptions(name=name, kind="sts", path="x") for name in names])
