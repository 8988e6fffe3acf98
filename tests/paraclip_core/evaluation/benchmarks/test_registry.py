"""The rows of the benchmarks: every metric has one, and a gate's metric is one that is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.errors import ConfigError
from paraclip_core.evaluation.benchmarks import (
    BENCHMARKS,
    Metric,
    check_metric,
    describe_benchmark,
    find_benchmark,
    headline_metrics,
    metric_of,
)
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.settings import parse_settings

GUIDE = Path(__file__).parents[4] / "docs" / "benchmarks.md"


def test_every_metric_of_a_kind_can_rule_a_gate() -> None:
    rows = [(kind, metric) for kind in BENCHMARKS for metric in find_benchmark(kind).metrics]
    for kind, metric in rows:
        assert check_metric(f"{kind}/{metric.name}") == f"{kind}/{metric.name}"
    lower = [f"{kind}/{metric.name}" for kind, metric in rows if metric.lower_is_better]
    assert lower == [
        "paraphrased_retrieval/unrelated_ao@10",
        *(
            f"{kind}/{metric}@10"
            for kind in ("query_pairs", "query_log")
            for metric in ("unrelated_ao", "hard_negative_ao", "hard_negative_js")
        ),
        "sugarcrepe/text_only_closeness",
    ]


def test_a_category_has_its_metrics_facts_and_what_is_not_at_hand_a_name() -> None:
    assert check_metric("sugarcrepe/accuracy@add_obj") == "sugarcrepe/accuracy@add_obj"
    label = metric_of("sugarcrepe", "text_only_closeness@add_obj").label
    assert label == "text only closeness@add_obj, lower is better"
    assert metric_of("retrieval", "text_to_image_recall@5").label == "text → image recall@5"
    assert find_benchmark("retrieval").metric("text_to_image_recall@7") is None
    assert headline_metrics() == ["ao@10", "corrected_ao@10", "margin", "text_to_image_recall@10", "spearman"]
    assert describe_benchmark("no_such_module:MINE").title == "no_such_module:MINE"
    assert metric_of("no_such_module:MINE", "score_a") == Metric("score_a")
    table = GUIDE.read_text("utf-8").partition("## ")[0]
    assert [kind for kind in BENCHMARKS if f"`{kind}`" not in table] == []


def test_images_are_named_for_kinds_that_read_them_beside_a_path() -> None:
    assert BenchmarkOptions(name="x", kind="retrieval", path="a", images="b").images == "b"
    for options in ({"kind": "sts", "path": "a"}, {"kind": "retrieval"}):
        with pytest.raises(ValueError, match=r"reads no images in addition to its path; leave out `images`"):
            BenchmarkOptions(name="x", images="b", **options)  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("excel", r"Input should be 'paraphrased_retrieval', 'query_pairs', "),
        ("module:MINE", r"Input should be 'paraphrased_retrieval', 'query_pairs', "),
        ("sts", r"sts has no options"),
    ],
)
def test_kinds_and_options_are_checked(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchmarkOptions(name="x", kind=kind, options={"a": 1})


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"metric": "paraphrased_retrieval/foo@10"}, r"did you mean paraphrased_retrieval/ao@10\?"),
        ({"metric": "ao@10"}, r"'ao@10', written kind/metric"),
        ({"max_drop": {"sts/spaerman": 1}}, r"did you mean sts/spearman\?"),
        ({"metric": "no_such_module:MINE/score"}, r"no benchmark measures 'no_such_module:MINE/score'"),
    ],
)
def test_a_metric_that_nothing_measures_is_refused(gate: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings({"evaluate": {"gate": gate}})
