"""Results have the published shapes and say nothing that differs from run to run."""

from __future__ import annotations

import numpy as np

from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.result import Provenance, mteb_name, result_json


def test_published_result_shapes() -> None:
    hits = Sample(np.array([1.0, 0.0, 1.0, 1.0]), np.arange(4))
    result = result_json(
        "retrieval", "karpathy", "base", "abc", Measured({"text_to_image_recall@5": hits}, {"split": "test"})
    )
    assert result["metrics"] == {"image_retrieval_recall@5": 0.75}
    assert (result["task"], result["dataset"], result["language"]) == ("zeroshot_retrieval", "karpathy", "en")
    result = result_json("sts", "stsb", "base", "abc", Measured({"spearman": hits}, {}))
    assert result["scores"]["test"][0]["main_score"] == result["scores"]["test"][0]["cosine_spearman"] == 0.75
    result = result_json(
        "sugarcrepe", "crepe", "base", "abc", Measured({"accuracy@add_obj": hits, "accuracy": hits}, {})
    )
    assert result["metrics"] == {"acc@add_obj": 0.75, "acc": 0.75}


def test_a_bundle_is_one_result_and_an_artifacts_say_nothing_that_differs_from_run_to_run() -> None:
    hits = Sample(np.array([1.0, 0.0]), np.arange(2))
    measured = Measured({"spearman": hits, "spearman@STS12": hits, "spearman@SICK-R": hits}, {"texts": "raw"})
    provenance = Provenance("r" * 64, 1.5, {"torch": "2"})
    whole = result_json("sts7", "all", "tuned", "abc", measured, provenance)
    assert whole["metrics"] == {"spearman": 0.5, "spearman@STS12": 0.5, "spearman@SICK-R": 0.5}
    assert (whole["versions"], whole["dataset_revision"]) == ({"torch": "2"}, "r" * 64)
    result = result_json("sts", "stsb", "base", "abc", Measured({"spearman": Sample(np.ones(2), np.arange(2))}, {}))
    fields = "task_name dataset_revision mteb_version scores evaluation_time kg_co2_emissions model pretrained protocol"
    assert list(result) == fields.split()
    assert (result["task_name"], result["dataset_revision"], result["mteb_version"]) == ("stsb", None, None)
    names = [mteb_name("sts", name) for name in ("stsb", "STS-B", "sts12", "STS16", "mine")]
    assert names == ["STSBenchmark", "STSBenchmark", "STS12", "STS16", "mine"]
    assert mteb_name("sick", "anything") == "SICK-R"
