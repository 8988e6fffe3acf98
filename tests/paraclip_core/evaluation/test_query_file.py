"""Queries and pairs from text files and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.query_file import read_queries, read_single_queries


def test_queries_from_text_and_tables(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("﻿a dog\n\ntwo cats\r\na dog\n", "utf-8")
    assert read_queries(tmp_path / "q.txt") == (["a dog", "two cats"], [])
    (tmp_path / "q.csv").write_text("query,paraphrased_query\na dog,a hound\na dog,a hound\na cat,a cat\n")
    assert read_queries(tmp_path / "q.csv") == ([], [("a dog", "a hound")])
    (tmp_path / "q.jsonl").write_text('{"caption": "a dog", "paraphrase": "a hound"}\n')
    assert read_queries(tmp_path / "q.jsonl") == ([], [("a dog", "a hound")])
    (tmp_path / "log.csv").write_text("query,count\na dog,3\n,2\na cat,1\n")
    assert read_queries(tmp_path / "log.csv") == (["a dog", "a cat"], [])


def test_single_queries_of_every_format(tmp_path: Path) -> None:
    texts = ["a dog", "", "two, cats", "a dog"]
    (tmp_path / "q.txt").write_text("\ufeff" + "\n".join(texts), "utf-8")
    (tmp_path / "q.csv").write_text('id,caption\n1,a dog\n2,\n3,"two, cats"\n4,a dog\n')
    (tmp_path / "q.tsv").write_text("query\tid\na dog\t1\n \t2\ntwo, cats\t3\n")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"query": text or None}) + "\n" for text in texts))
    pq.write_table(pa.table({"query": texts, "caption": ["x"] * 4}), tmp_path / "q.parquet")
    for name in ("q.txt", "q.csv", "q.tsv", "q.jsonl", "q.parquet"):
        assert read_single_queries(tmp_path / name) == ["a dog", "two, cats"], name


@pytest.mark.parametrize("read", [read_queries, read_single_queries])
@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("q.txt", "\n \n", InputError, "q.txt holds no query; expected one per line, or"),
        ("q.csv", "query\n", InputError, "q.csv holds no query"),
        ("q.csv", "text\na dog\n", BenchmarkError, "row 2: query or caption is None, .* fields are text"),
        ("q.jsonl", '{"query": "a"}\n{"query": ["b"]}\n', BenchmarkError, r"row 2: query is \['b'\], expected text"),
        ("q.jsonl", '{"query": "\\ud800"}\n', BenchmarkError, "row 1: query is"),
        ("q.txt", "x" * 10_001, InputError, "a query of 10001 characters; expected at most 10000"),
        ("q.txt", "caf\udce9", InputError, "expected UTF-8"),
        ("q.xml", "<q/>", BenchmarkError, "q.xml: expected a .jsonl"),
    ],
)
def test_a_file_without_usable_queries_is_refused(
    tmp_path: Path, read: Callable[[Path], object], name: str, content: str, error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(error, match=message):
        read(tmp_path / name)
