"""A gate's metric is one that is measured."""

from __future__ import annotations

import pytest

from paraclip_core.errors import ConfigError
from paraclip_core.metric_names import METRICS, check_metric, lower_is_better
from paraclip_core.settings import parse_settings


@pytest.mark.parametrize("kind", METRICS)
def test_every_metric_of_a_kind_is_known(kind: str) -> None:
    for metric in METRICS[kind]:  # pyright: ignore[reportArgumentType]
        assert check_metric(f"{kind}/{metric}") == f"{kind}/{metric}"


def test_a_category_is_known() -> None:
    assert check_metric("sugarcrepe/accuracy@add_obj") == "sugarcrepe/accuracy@add_obj"


def test_which_metrics_are_better_when_lower() -> None:
    assert lower_is_better("text_only_closeness") and lower_is_better("text_only_closeness@add_obj")
    assert [name for names in METRICS.values() for name in names if lower_is_better(name)] == ["text_only_closeness"]


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"metric": "paraphrased_retrieval/foo@10"}, r"did you mean paraphrased_retrieval/ao@10\?"),
        ({"metric": "ao@10"}, r"'ao@10', written kind/metric"),
        ({"max_drop": {"sts/spaerman": 1}}, r"did you mean sts/spearman\?"),
    ],
)
def test_a_metric_that_nothing_measures_is_refused(gate: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings({"evaluate": {"gate": gate}})


@pytest.mark.parametrize("options", [{"run": {"device": "gpu"}}, {"evaluate": {"split": "tset"}}])
def test_devices_and_splits_are_checked_at_once(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"'gpu'|'tset'"):
        parse_settings(options)
