"""Rows, verdict and summary; intervals have tests of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paraclip_core.config import EvaluateOptions, GateRule
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.compare import Outcome, Row, compare, judge, judge_challenger, with_control
from paraclip_core.evaluation.results import Measured, Sample


def row(kind: str, metric: str, delta: float, low: float, name: str | None = None) -> Row:
    return Row(name or kind, kind, metric, 50.0, 50.0 + delta, delta, low, delta + (delta - low), 10, 10)


GAIN = row("paraphrased_retrieval", "ao@10", 1.0, 0.4)
RECALL = "text_to_image_recall@10"


@pytest.mark.parametrize(
    ("rows", "verdict", "reason"),
    [
        ([GAIN], "promote", "paraphrased_retrieval ao@10 +1.00 [+0.40, +1.60] is clear of zero"),
        ([GAIN, row("retrieval", RECALL, -0.9, -1.5)], "promote", "no other rule is broken"),
        ([GAIN, row("retrieval", RECALL, -1.2, -1.5)], "hold", "fell by 1.20, at most 1 is allowed"),
        ([GAIN, row("sts", "spearman", -0.6, -1, "stsb")], "hold", "stsb spearman fell by 0.60"),
        ([row("paraphrased_retrieval", "ao@10", 1.0, 0.0)], "hold", "not clear of zero"),
        ([GAIN, row("paraphrased_retrieval", "ao@10", 0.1, -0.2, "second")], "hold", "second ao@10 +0.10"),
        ([row("sts", "spearman", 1, 0.5)], "hold", "paraphrased_retrieval/ao@10 was not measured"),
        ([GAIN, row("retrieval", "recall@10", 0, -1)], "hold", "text_to_image_recall@10 names no measured metric"),
        ([], "hold", "nothing was measured"),
    ],
)
def test_verdict(rows: list[Row], verdict: str, reason: str) -> None:
    found, why, _ = judge(rows, GateRule())
    assert found == verdict
    assert reason in why


@pytest.mark.parametrize(
    ("rows", "verdict", "reason"),
    [
        (
            [row("paraphrased_retrieval", "ao@10", 0.2, -0.5)],
            "promote",
            "+0.20 [-0.50, +0.90] does not lie below zero",
        ),
        (
            [row("paraphrased_retrieval", "ao@10", -0.5, -1.0), GAIN],
            "promote",
            "[-1.00, +0.00]; paraphrased",
        ),
        ([row("paraphrased_retrieval", "ao@10", 0.0, 0.0)], "promote", "does not lie below zero"),
        ([row("paraphrased_retrieval", "ao@10", -0.2, -0.9)], "hold", "-0.20 [-0.90, +0.50] is a step down"),
        ([row("paraphrased_retrieval", "ao@10", -0.2, -0.9), GAIN], "promote", "does not lie below zero"),
        ([row("paraphrased_retrieval", "ao@10", -0.9, -1.6)], "hold", "-0.90 [-1.60, -0.20] lies below zero"),
        ([GAIN, row("retrieval", RECALL, -1.2, -1.5)], "hold", "fell by 1.20, at most 1 is allowed"),
        ([], "hold", "nothing was measured"),
    ],
)
def test_a_challenger_need_not_be_better_but_not_worse(rows: list[Row], verdict: str, reason: str) -> None:
    found, why, _ = judge_challenger(rows, GateRule())
    assert found == verdict
    assert reason in why


def test_a_collapsed_champion_holds_nobody_and_a_collapsed_challenger_never_follows() -> None:
    below = [row("paraphrased_retrieval", "ao@10", -30.0, -31.0), row("retrieval", RECALL, 40.0, 39.0)]
    sound, collapsed = [row("retrieval", RECALL, -0.9, -1.5)], [row("retrieval", RECALL, -40.0, -41.0)]
    assert judge_challenger(below, GateRule(), champion=sound, challenger=sound)[0] == "hold"
    verdict, why, _ = judge_challenger(below, GateRule(), champion=collapsed, challenger=sound)
    reason = f"retrieval {RECALL} fell by 40.00, at most 1 is allowed"
    assert verdict == "promote"
    assert why == f"the champion fails the gate against its own base ({reason}), so its agreement holds nobody"
    for champion in (sound, collapsed):
        verdict, why, _ = judge_challenger([GAIN], GateRule(), champion=champion, challenger=collapsed)
        assert verdict == "hold" and why == f"the challenger fails the gate against its own base: {reason}"
    # Without retrieval, the captions' recall tells.
    stand_in = [row("paraphrased_retrieval", f"caption_{RECALL}", -40.0, -41.0)]
    assert judge_challenger(below, GateRule(), champion=stand_in)[0] == "promote"


def test_of_a_metric_that_is_better_when_lower_a_rise_is_a_loss() -> None:
    closeness = "text_only_closeness@add_obj"
    fell, rose = row("sugarcrepe", closeness, -2.0, -2.5), row("sugarcrepe", closeness, 2.0, 1.5)
    drop = GateRule(max_drop={f"sugarcrepe/{closeness}": 1.0})
    assert judge([GAIN, fell], drop)[0] == "promote"
    verdict, why, _ = judge([GAIN, rose], drop)
    assert verdict == "hold" and why == f"sugarcrepe {closeness} rose by 2.00, at most 1 is allowed"
    gate = GateRule(metric=f"sugarcrepe/{closeness}", max_drop={})
    assert judge([fell], gate)[:2] == (
        "promote",
        f"sugarcrepe {closeness} -2.00 [-2.50, -1.50] is clear of zero and no other rule is broken",
    )
    assert judge([rose], gate)[0] == "hold"
    assert judge_challenger([fell], gate)[0] == "promote"
    verdict, why, _ = judge_challenger([rose], gate)
    assert verdict == "hold" and why.endswith("+2.00 [+1.50, +2.50] lies above zero")


def test_a_rule_without_its_benchmark_is_noted() -> None:
    notes = judge([GAIN], GateRule())[2]
    assert notes == [
        f"the rule on {rule} was not applied: no such benchmark was measured"
        for rule in (f"retrieval/{RECALL}", "sts/spearman")
    ]


def test_without_retrieval_the_captions_recall_is_what_may_not_fall() -> None:
    stand_in = f"paraphrased_retrieval/caption_{RECALL}"
    drop = row("paraphrased_retrieval", f"caption_{RECALL}", -80.0, -85.0)
    verdict, why, notes = judge([GAIN, drop], GateRule())
    assert verdict == "hold"
    assert f"caption_{RECALL} fell by 80.00, at most 1 is allowed" in why
    assert f"the rule on retrieval/{RECALL} was applied to {stand_in}: no such benchmark was measured" in notes
    assert judge([GAIN, drop, row("retrieval", RECALL, 0.0, 0.0)], GateRule())[0] == "promote"
    own = {f"retrieval/{RECALL}": 1.0, stand_in: 90.0}
    assert judge([GAIN, drop], GateRule(max_drop=own))[0] == "promote"
    assert judge([GAIN, drop], GateRule(max_drop={}))[0] == "promote"


def test_agreement_recall_and_sts_stand_side_by_side() -> None:
    recall, sts = row("retrieval", RECALL, 0.5, -0.5), row("sts", "spearman", 0.4, -1, "stsb")
    assert judge([GAIN, recall, sts], GateRule())[1] == (
        "paraphrased_retrieval ao@10 +1.00 [+0.40, +1.60] is clear of zero and no other rule is broken, "
        f"with retrieval {RECALL} +0.50 [-0.50, +1.50]; stsb spearman +0.40 [-1.00, +1.80]"
    )
    verdict, why, _ = judge([GAIN, row("retrieval", RECALL, -15.5, -17), sts], GateRule())
    assert verdict == "hold" and why == (
        f"retrieval {RECALL} fell by 15.50, at most 1 is allowed; "
        f"paraphrased_retrieval ao@10 +1.00 [+0.40, +1.60] with retrieval {RECALL} -15.50 [-17.00, -14.00]; "
        "stsb spearman +0.40 [-1.00, +1.80]: agreement up and recall down is what a collapse looks like, "
        "for a tower that embeds all texts alike agrees"
    )
    assert "collapse" not in judge([GAIN, recall, row("sts", "spearman", -0.6, -1)], GateRule())[1]
    assert "collapse" not in judge([row("paraphrased_retrieval", "ao@10", -1, -2), recall], GateRule())[1]


@pytest.mark.parametrize(
    ("low", "wanted", "verdict"),
    [(0.2, True, "promote"), (0.2, False, "promote"), (-0.1, True, "hold"), (-0.1, False, "promote")],
)
def test_the_gain_over_the_control_comes_first(low: float, wanted: bool, verdict: str) -> None:
    plain = compare([outcome()], EvaluateOptions(resamples=200))
    control = [row("paraphrased_retrieval", "ao@10", 0.8, low, "rewordings"), row("sts", "spearman", 0.1, -1)]
    found = with_control(plain, control, GateRule(over_control=wanted))
    assert (plain.verdict, found.verdict) == ("promote", verdict)
    over = f"over captions alone rewordings ao@10 +0.80 [{low:+.2f}, {1.6 - low:+.2f}]; {plain.reason}"
    lacking = "rewordings ao@10 is not clear of zero over captions alone: " if verdict == "hold" else ""
    assert found.reason == lacking + over
    summary = found.summary({})
    assert summary["over_control"]["rewordings"]["ao@10"] == [0.8, low, pytest.approx(1.6 - low)]
    assert summary["models"]["control"] == {"rewordings": {"ao@10": 50.0}, "sts": {"spearman": 50.0}}
    assert len(found.as_json()["over_control"]) == 2 and "over_control" not in plain.as_json()
    # A gain over the control mends nothing.
    held = compare([outcome(0.0)], EvaluateOptions(resamples=200))
    assert with_control(held, control, GateRule()).verdict == "hold"


def test_a_gate_over_the_control_needs_one() -> None:
    with pytest.raises(ValueError, match=r"set evaluate\.control: true"):
        EvaluateOptions(gate=GateRule(over_control=True))


def outcome(gain: float = 0.2, images: int = 30) -> Outcome:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 3)
    values = rng.random(90)

    def measured(shift: float) -> Measured:
        return Measured(
            {"ao@10": Sample(values + shift, clusters)}, {"images": images}, {"caption": np.eye(3, dtype=int)}
        )

    return Outcome("rewordings", "paraphrased_retrieval", measured(0.0), measured(gain))


def test_rows_are_in_percent() -> None:
    comparison = compare([outcome()], EvaluateOptions(resamples=200), {"stsb": "its path is absent"})
    (only,) = comparison.rows
    assert (only.delta, only.low, only.high) == pytest.approx((20.0, 20.0, 20.0))
    assert (only.n, only.clusters) == (90, 30)
    assert only.tuned - only.base == pytest.approx(20.0, abs=1e-5)
    assert comparison.verdict == "promote"
    assert "stsb was left out: its path is absent" in comparison.notes
    assert json.loads(json.dumps(comparison.as_json()))["rows"][0]["metric"] == "ao@10"


def test_equal_models_are_held() -> None:
    comparison = compare([outcome(0.0)], EvaluateOptions(resamples=200))
    assert comparison.verdict == "hold"
    assert str(comparison.rows[0].low) == "0.0"


def test_a_gain_among_few_images_is_held() -> None:
    held, promoted = (compare([outcome(images=n)], EvaluateOptions(resamples=200)) for n in (19, 20))
    assert (held.verdict, promoted.verdict) == ("hold", "promote") and held.rows == promoted.rows
    assert held.reason == "the 19 images of rewordings prove nothing; use a split of 20 images or more"


def test_too_few_queries_name_the_benchmark() -> None:
    one = Measured({"spearman": Sample(np.ones(3), np.zeros(3, int))}, {})
    with pytest.raises(BenchmarkError, match=r"benchmark 'tiny', spearman: .* at least two"):
        compare([Outcome("tiny", "sts", one, one)], EvaluateOptions())


def test_summary_has_the_agreed_shape() -> None:
    comparison = compare([outcome()], EvaluateOptions(resamples=200))
    found = comparison.summary({"finetune": "abc"})
    assert set(found) == {"models", "deltas", "intervals", "verdict", "reason", "notes", "fingerprints"}
    assert found["notes"] == list(comparison.notes) != []
    assert found["deltas"]["rewordings"]["ao@10"] == pytest.approx(20.0)
    assert found["intervals"]["rewordings"]["ao@10"] == pytest.approx([20.0, 20.0])
    assert found["models"]["tuned"]["rewordings"]["ao@10"] == comparison.rows[0].tuned


@pytest.mark.parametrize(
    ("kind", "metric", "low", "high", "side"),
    [
        ("paraphrased_retrieval", "ao@10", 0.1, 0.3, 1),
        ("paraphrased_retrieval", "ao@10", -0.3, -0.1, -1),
        ("paraphrased_retrieval", "ao@10", -0.1, 0.1, 0),
        ("sugarcrepe", "text_only_closeness", 0.1, 0.3, -1),
        ("sugarcrepe", "text_only_closeness@swap_att", -0.3, -0.1, 1),
    ],
)
def test_a_gain_is_told_from_a_loss(kind: str, metric: str, low: float, high: float, side: int) -> None:
    assert Row("b", kind, metric, 1.0, 1.0, 0.0, low, high, 10, 10).side == side
