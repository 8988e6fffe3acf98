"""Outcomes as arrays, as tables, and in the shapes of published results."""

from __future__ import annotations

import numpy as np

from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.metrics import Sample
from paraclip_core.evaluation.run import (
    Provenance,
    from_arrays,
    from_table,
    mteb_name,
    result_json,
    to_arrays,
    to_table,
)
from paraclip_core.tables import SAMPLES


def test_arrays_there_and_back() -> None:
    gold = Sample(np.arange(4.0), np.arange(4), np.arange(4.0)[::-1])
    before = Measured(
        {"spearman": gold, "ao@10": Sample(np.ones(2), np.arange(2))}, {"a": 1}, {"x": np.eye(2, dtype=int)}
    )
    after = from_arrays(to_arrays(before), {"a": 1})
    assert after.metrics == before.metrics == {"spearman": -100.0, "ao@10": 100.0}
    assert list(after.samples) == list(before.samples)
    np.testing.assert_array_equal(after.ranked["x"], before.ranked["x"])


def test_tables_there_and_back() -> None:
    gold = Sample(np.array([0.1, 0.2, 0.4]), np.arange(3), np.array([3.0, 1.0, 2.0]))
    base = Measured({"spearman": gold, "ao@10": Sample(np.ones(2), np.array([7, 7]))}, {"a": 1})
    other = Sample(np.array([0.3, 0.1, 0.2]), np.arange(3), gold.gold)
    tuned = Measured({"spearman": other, "ao@10": Sample(np.zeros(2), np.array([7, 7]))}, {})
    table = to_table(base, tuned)
    assert table.schema.equals(SAMPLES) and table.num_rows == 5
    for before, after in zip((base, tuned), from_table(table), strict=True):
        assert after.metrics == before.metrics and list(after.samples) == list(before.samples)
        for metric, sample in before.samples.items():
            np.testing.assert_array_equal(after.samples[metric].clusters, sample.clusters)
            assert (after.samples[metric].gold is None) == (sample.gold is None)


def test_published_result_shapes() -> None:
    hits = Sample(np.array([1.0, 0.0, 1.0, 1.0]), np.arange(4))
    found = result_json(
        "retrieval", "karpathy", "base", "abc", Measured({"text_to_image_recall@5": hits}, {"split": "test"})
    )
    assert found["metrics"] == {"image_retrieval_recall@5": 0.75}
    assert (found["task"], found["dataset"], found["language"]) == ("zeroshot_retrieval", "karpathy", "en")
    found = result_json("sts", "stsb", "base", "abc", Measured({"spearman": hits}, {}))
    assert found["scores"]["test"][0]["main_score"] == found["scores"]["test"][0]["cosine_spearman"] == 0.75
    found = result_json(
        "sugarcrepe", "crepe", "base", "abc", Measured({"accuracy@add_obj": hits, "accuracy": hits}, {})
    )
    assert found["metrics"] == {"acc@add_obj": 0.75, "acc": 0.75}


def test_a_bundle_is_one_result() -> None:
    hits = Sample(np.array([1.0, 0.0]), np.arange(2))
    measured = Measured({"spearman": hits, "spearman@STS12": hits, "spearman@SICK-R": hits}, {"texts": "raw"})
    provenance = Provenance("r" * 64, 1.5, {"torch": "2"})
    whole = result_json("sts7", "all", "tuned", "abc", measured, provenance)
    assert whole["metrics"] == {"spearman": 0.5, "spearman@STS12": 0.5, "spearman@SICK-R": 0.5}
    assert (whole["versions"], whole["dataset_revision"]) == ({"torch": "2"}, "r" * 64)


def test_an_artifacts_results_say_nothing_that_differs_from_run_to_run() -> None:
    found = result_json("sts", "stsb", "base", "abc", Measured({"spearman": Sample(np.ones(2), np.arange(2))}, {}))
    fields = "task_name dataset_revision mteb_version scores evaluation_time kg_co2_emissions model pretrained protocol"
    assert list(found) == fields.split()
    assert (found["task_name"], found["dataset_revision"], found["mteb_version"]) == ("stsb", None, None)


def test_mtebs_names() -> None:
    names = [mteb_name("sts", name) for name in ("stsb", "STS-B", "sts12", "STS16", "mine")]
    assert names == ["STSBenchmark", "STSBenchmark", "STS12", "STS16", "mine"]
    assert mteb_name("sick", "anything") == "SICK-R"
