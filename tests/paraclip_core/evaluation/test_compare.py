"""Rows, verdict and summary; intervals have tests of their own."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import Outcome, Row, apply_gate, compare, gate_challenger, with_control
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.options import EvaluateOptions, GateRule
from paraclip_core.evaluation.power import images_needed


def row(kind: str, metric: str, delta: float, low: float, name: str | None = None) -> Row:
    return Row(name or kind, kind, metric, 50.0, 50.0 + delta, delta, low, delta + (delta - low), 10, 10)


GAIN = row("paraphrased_retrieval", "ao@10", 1.0, 0.4)
RECALL = "text_to_image_recall@10"
SAME = row("retrieval", RECALL, 0.0, -0.5)
ALONE = EvaluateOptions(gate=GateRule(max_drop={}))
"""A gate of agreement alone."""


@pytest.mark.parametrize(
    ("rows", "verdict", "reason"),
    [
        ([GAIN, SAME], "promote", "AO@10 of paraphrased_retrieval +1.00 [+0.40, +1.60] is clear of zero"),
        ([GAIN, row("retrieval", RECALL, -0.9, -1.5)], "promote", "no other rule is broken"),
        ([GAIN, row("retrieval", RECALL, -1.2, -1.5)], "hold", "fell by 1.20, at most 1 is allowed"),
        ([GAIN, row("sts", "spearman", -0.6, -1, "stsb")], "hold", "spearman of stsb fell by 0.60"),
        ([row("paraphrased_retrieval", "ao@10", 1.0, 0.0)], "hold", "not clear of zero"),
        ([row("paraphrased_retrieval", "ao@10", -2.8, -4.9)], "hold", "-2.80 [-4.90, -0.70] lies below zero"),
        ([GAIN, row("paraphrased_retrieval", "ao@10", 0.1, -0.2, "second")], "hold", "AO@10 of second +0.10"),
        ([row("sts", "spearman", 1, 0.5)], "hold", "AO@10 of the kind paraphrased_retrieval was not measured"),
        # People's pairs stand in for captions, as outside a run.
        ([row("query_pairs", "ao@10", 1.0, 0.4), SAME], "promote", "AO@10 of query_pairs +1.00"),
        # Texts that all become alike agree, too.
        ([GAIN], "hold", "nothing that a collapse would lower was measured"),
        ([GAIN, row("query_pairs", "margin", -0.1, -0.3)], "promote", "no other rule is broken"),
        ([GAIN, row("query_pairs", "margin", -0.3, -0.5)], "hold", "margin over hard negatives of query_pairs -0.30"),
        ([GAIN, SAME, row("query_pairs", "margin", -0.3, -0.5)], "promote", "no other rule is broken"),
        (
            [row("query_log", "ao@10@rules", 1, 0.5), row("query_log", "js@10", 1, 0.5)],
            "hold",
            "measured: JS@10 of the kind query_log",
        ),
        ([GAIN, row("retrieval", "recall@10", 0, -1)], "hold", "text_to_image_recall@10 names no measured metric"),
        ([], "hold", "measured: nothing"),
    ],
)
def test_verdict(rows: list[Row], verdict: str, reason: str) -> None:
    decision, why, _ = apply_gate(rows, GateRule())
    assert decision == verdict
    assert reason in why


@pytest.mark.parametrize(
    ("delta", "low", "others", "verdict", "reason"),
    [
        (0.2, -0.5, [], "promote", "+0.20 [-0.50, +0.90] does not lie below zero"),
        (-0.5, -1.0, [GAIN], "promote", "[-1.00, +0.00], AO@10"),
        (0.0, 0.0, [], "promote", "does not lie below zero"),
        (-0.2, -0.9, [], "hold", "-0.20 [-0.90, +0.50] is a step down"),
        (-0.9, -1.6, [], "hold", "-0.90 [-1.60, -0.20] lies below zero"),
        (1.0, 0.4, [row("retrieval", RECALL, -1.2, -1.5)], "hold", "fell by 1.20, at most 1 is allowed"),
    ],
)
def test_a_challenger_need_not_be_better_but_not_worse(
    delta: float, low: float, others: list[Row], verdict: str, reason: str
) -> None:
    decision, why, _ = gate_challenger([row("paraphrased_retrieval", "ao@10", delta, low), *others], GateRule())
    assert decision == verdict and reason in why


def test_a_collapsed_champion_holds_nobody_and_a_collapsed_challenger_never_follows() -> None:
    below = [row("paraphrased_retrieval", "ao@10", -30.0, -31.0), row("retrieval", RECALL, 40.0, 39.0)]
    sound, collapsed = [row("retrieval", RECALL, -0.9, -1.5)], [row("retrieval", RECALL, -40.0, -41.0)]
    assert gate_challenger(below, GateRule(), champion=sound, challenger=sound)[0] == "hold"
    verdict, why, _ = gate_challenger(below, GateRule(), champion=collapsed, challenger=sound)
    reason = "text → image recall@10 of retrieval fell by 40.00, at most 1 is allowed"
    assert verdict == "promote"
    assert why == f"the champion fails the gate against its own base ({reason}), so its agreement holds nobody"
    for champion in (sound, collapsed):
        verdict, why, _ = gate_challenger([GAIN], GateRule(), champion=champion, challenger=collapsed)
        assert verdict == "hold" and why == f"the challenger fails the gate against its own base: {reason}"
    # Without retrieval, the captions' recall tells.
    stand_in = [row("paraphrased_retrieval", f"caption_{RECALL}", -40.0, -41.0)]
    assert gate_challenger(below, GateRule(), champion=stand_in)[0] == "promote"


def test_of_a_metric_that_is_better_when_lower_a_rise_is_a_loss() -> None:
    closeness = "text_only_closeness@add_obj"
    fell, rose = row("sugarcrepe", closeness, -2.0, -2.5), row("sugarcrepe", closeness, 2.0, 1.5)
    drop = GateRule(max_drop={f"sugarcrepe/{closeness}": 1.0})
    assert apply_gate([GAIN, fell], drop)[0] == "promote"
    assert apply_gate([GAIN, rose], drop)[:2] == (
        "hold",
        "text only closeness@add_obj of sugarcrepe rose by 2.00, at most 1 is allowed",
    )
    gate = GateRule(metric=f"sugarcrepe/{closeness}", max_drop={})
    assert [apply_gate([one], gate)[0] for one in (fell, rose)] == ["promote", "hold"]
    assert gate_challenger([fell], gate)[0] == "promote"
    verdict, why, _ = gate_challenger([rose], gate)
    assert verdict == "hold" and why.endswith("+2.00 [+1.50, +2.50] lies above zero")


def test_what_a_gate_needs_is_reported() -> None:
    notes = apply_gate([GAIN], GateRule())[2]
    assert notes == [
        f"the rule on {rule} was not applied: it was not measured" for rule in (f"retrieval/{RECALL}", "sts/spearman")
    ]
    with pytest.raises(ValueError, match=r"set evaluate\.control: true"):
        EvaluateOptions(gate=GateRule(over_control=True))
    one = Measured({"spearman": Sample(np.ones(3), np.zeros(3, int))}, {})
    with pytest.raises(BenchmarkError, match=r"benchmark 'tiny', spearman: .* at least two"):
        compare([Outcome("tiny", "sts", one, one)], EvaluateOptions())


def test_without_retrieval_the_captions_recall_is_what_may_not_fall() -> None:
    stand_in = f"paraphrased_retrieval/caption_{RECALL}"
    drop = row("paraphrased_retrieval", f"caption_{RECALL}", -80.0, -85.0)
    verdict, why, notes = apply_gate([GAIN, drop], GateRule())
    assert verdict == "hold"
    assert "caption → image recall@10 of paraphrased_retrieval fell by 80.00, at most 1 is allowed" in why
    assert f"the rule on retrieval/{RECALL} was applied to {stand_in}: the former was not measured" in notes
    assert apply_gate([GAIN, drop, row("retrieval", RECALL, 0.0, 0.0)], GateRule())[0] == "promote"
    own = {f"retrieval/{RECALL}": 1.0, stand_in: 90.0}
    assert apply_gate([GAIN, drop], GateRule(max_drop=own))[0] == "promote"
    assert apply_gate([GAIN, drop], GateRule(max_drop={}))[0] == "promote"


def test_agreement_recall_and_sts_stand_side_by_side() -> None:
    recall, sts = row("retrieval", RECALL, 0.5, -0.5), row("sts", "spearman", 0.4, -1, "stsb")
    why = apply_gate([GAIN, recall, sts], GateRule())[1]
    assert why.endswith(
        ", with text → image recall@10 of retrieval +0.50 [-0.50, +1.50], spearman of stsb +0.40 [-1.00, +1.80]"
    )
    verdict, why, _ = apply_gate([GAIN, row("retrieval", RECALL, -15.5, -17), sts], GateRule())
    assert verdict == "hold" and why.startswith(
        "text → image recall@10 of retrieval fell by 15.50, at most 1 is allowed; "
    )
    assert "[+0.40, +1.60] with text → image recall@10 of retrieval -15.50" in why and "a collapse looks like" in why
    assert "collapse" not in apply_gate([GAIN, recall, row("sts", "spearman", -0.6, -1)], GateRule())[1]
    assert "collapse" not in apply_gate([row("paraphrased_retrieval", "ao@10", -1, -2), recall], GateRule())[1]


@pytest.mark.parametrize(
    ("over", "control", "wanted", "verdict", "text"),
    [
        (
            (0.8, 0.2),
            (0.1, -0.3),
            True,
            "promote",
            "; over the caption-only control AO@10 of paraphrased_queries +0.80 [+0.20, +1.40]",
        ),
        ((0.8, -0.1), (0.1, -0.3), False, "promote", "[-0.10, +1.70], not clear of zero, so a gain may be"),
        (
            (0.8, -0.1),
            (0.1, -0.3),
            True,
            "hold",
            "; held, as over the caption-only control AO@10 of paraphrased_queries +0.80 [-0.10",
        ),
        (
            (-0.6, -0.9),
            (0.9, 0.3),
            False,
            "hold",
            "; held, as the paraphrases do not pay, for the caption-only control",
        ),
        (
            (3.5, 2.9),
            (-0.2, -0.3),
            False,
            "promote",
            "counts the control's own fall below the base (AO@10 of paraphrased_queries -0.20 [-0.30, -0.10])",
        ),
        (
            (10.4, 8.0),
            (-13.2, -16.0),
            False,
            "promote",
            "; the control is worthless as one, for the caption-only control fell ",
        ),
        (
            (10.4, 8.0),
            (-13.2, -16.0),
            True,
            "hold",
            "below the base (AO@10 of paraphrased_queries -13.20 [-16.00, -10.40])",
        ),
        (
            (-9.0, -11.0),
            (20.0, 18.0),
            False,
            "promote",
            "fell below the base (text → image recall@10 of retrieval -30.00 [-34.00",
        ),
    ],
)
def test_the_control_comes_second(
    over: tuple[float, float], control: tuple[float, float], wanted: bool, verdict: str, text: str
) -> None:
    plain = compare([outcome()], ALONE)
    rows = [[row("paraphrased_retrieval", "ao@10", *of, "paraphrased_queries")] for of in (over, control)]
    # A collapsed encoder agrees with itself, and finds nothing.
    rows[1].append(row("retrieval", RECALL, -30.0 if control[0] > 10 else 0.0, -34.0))
    rows[0].append(row("retrieval", RECALL, 0.0, -1.0))
    # Contradictions may agree more, too.
    rows[1].append(row("query_pairs", "margin", -3.0, -4.0))
    rule = GateRule(over_control=wanted, max_drop=GateRule().max_drop | {"query_pairs/margin": 1.0})
    judged = with_control(plain, rows[0], rows[1], rule)
    assert (plain.verdict, judged.verdict) == ("promote", verdict)
    assert judged.reason.startswith(f"{plain.reason}; ") and text in judged.reason
    summary = judged.summary({})
    # Nobody shall read a gain over a control that fell.
    worthless = "the control is worthless" in judged.reason
    assert (summary.keys() | judged.as_json().keys()).isdisjoint({"over_control"}) == worthless
    if not worthless:
        gains = summary["over_control"]["paraphrased_queries"]["ao@10"]
        assert gains == pytest.approx([*over, 2 * over[0] - over[1]]) and len(judged.as_json()["over_control"]) == 2
    assert summary["control"]["paraphrased_queries"]["ao@10"][0] == control[0]
    assert summary["models"]["control"]["paraphrased_queries"] == {"ao@10": 50.0 + control[0]}
    assert len(judged.as_json()["control"]) == 3 and not {"over_control", "control"} & plain.as_json().keys()
    # A gain over the control mends nothing.
    held = compare([outcome(0.0)], EvaluateOptions())
    assert with_control(held, rows[0], rows[1], GateRule()).verdict == "hold"


def searched(base: float, tuned: float, images: int = 400, metric: str = "ao@10", hits: float = 0.5) -> Outcome:
    """A figure whose single images vary as real ones do, and the recall of captions."""
    rng = np.random.default_rng(1)
    noise, clusters = rng.normal(0, 0.17, images), np.arange(images)
    recalls = (rng.random(images) < hits).astype(float)

    def measured(values: np.ndarray) -> Measured:
        samples = {metric: Sample(values, clusters), f"caption_{RECALL}": Sample(recalls, clusters)}
        return Measured(samples, {"images": images})

    return Outcome(
        "paraphrased_queries", "paraphrased_retrieval", measured(np.full(images, base)), measured(tuned + noise)
    )


def test_a_margin_that_fell_over_the_control_is_in_the_first_sentence() -> None:
    found = searched(0.2, 0.3, metric="paraphrased_query_text_to_image_recall@10")
    fell = row("query_pairs", "margin", -3.0, -4.0, "sick")
    clause = "but queries of different meaning agree more, too: the margin changes by -3.00 [-4.00, -2.00] over the"
    first = compare([found], EvaluateOptions(), over=[fell]).reason.partition("; ")[0]
    assert first.startswith("of 100 paraphrased queries ") and first.endswith(f"{clause} control on sick")
    kept = compare([found], EvaluateOptions(), over=[row("query_pairs", "margin", 3.0, 2.0, "sick")])
    assert "agree more" not in kept.reason


@pytest.mark.parametrize(("base", "tuned", "before", "after"), [(0.199, 0.302, 20, 30), (0.4, 0.2, 40, 20)])
def test_a_verdict_begins_with_what_a_user_sees(base: float, tuned: float, before: int, after: int) -> None:
    recall = searched(base, tuned, 4000, f"paraphrased_query_{RECALL}")
    headline = f"of 100 paraphrased queries {after} find their image among the first ten (before: {before}); "
    assert compare([searched(0.3, 0.6), recall], EvaluateOptions()).reason.startswith(headline)
    assert "of 100" not in compare([searched(0.3, 0.6)], EvaluateOptions()).reason


def test_a_margin_that_fell_below_the_champions_is_not_called_one_below_the_base() -> None:
    rng, clusters = np.random.default_rng(2), np.arange(200)

    def pairs(agreement: float, margin: float) -> Measured:
        values = {"ao@10": agreement, "margin": margin}
        samples = {name: Sample(mean + rng.normal(0, 0.01, 200), clusters) for name, mean in values.items()}
        return Measured(samples, {"images": 200})

    step = Outcome("sick", "query_pairs", pairs(0.5, 0.2), pairs(0.6, 0.1))
    options = EvaluateOptions(gate=GateRule(metric="query_pairs/ao@10", max_drop={}))
    for rule, model in ((apply_gate, "the base"), (gate_challenger, "the champion")):
        assert f"over {model} on sick" in compare([step], options, rule=rule).reason.partition("; ")[0]


def test_a_looser_rule_is_advised_only_if_there_is_a_gain() -> None:
    for gain, advice in ((0.3, "a smaller α"), (0.0, "more captions")):
        lost = replace(searched(0.5, 0.5 + gain, 4000), benchmark="captions")
        fell = [Sample(np.full(4000, recall), np.arange(4000)) for recall in (0.5, 0.4)]
        drop = Outcome("retrieval", "retrieval", *(Measured({RECALL: one}, {"images": 4000}) for one in fell))
        reason = compare([lost, drop], EvaluateOptions()).reason
        assert f"what would change it: {advice}" in reason and "fell by 10.00" in reason


def test_every_significant_loss_is_in_the_verdict() -> None:
    lost = Outcome(
        "second", "sts", *(Measured(searched(0, x, metric="accuracy").tuned.samples, {}) for x in (0.5, 0.4))
    )
    for gain, verdict in ((0.2, "promote"), (0.0, "hold")):
        comparison = compare([outcome(gain), lost], EvaluateOptions(gate=GateRule(max_drop={})))
        assert comparison.verdict == verdict
        assert "; significant losses: accuracy of second -10.00 [-10.00, -10.00]" in comparison.reason


def test_it_says_where_queries_are_too_few_to_tell_and_how_many_would_do() -> None:
    options = EvaluateOptions(gate=GateRule(max_drop={}))
    few, enough = (compare([searched(0.3, 0.3, images)], options) for images in (70, 4000))
    assert few.verdict == enough.verdict == "hold" and "too few" not in enough.reason
    (number,) = re.findall(
        r"too few to tell: 70 images make ±(.*) points of AO@10 of paraphrased_queries, .* about (.*) images",
        few.reason,
    )
    assert float(number[0]) == pytest.approx(1.96 * 17 / 70**0.5, rel=0.15)
    assert int(number[1].replace(",", "")) == pytest.approx(images_needed(70, float(number[0])), rel=0.1)
    assert "too few" not in compare([searched(0.3, 0.6, 70)], options).reason
    # A rule that noise may have broken.
    noise = searched(0.3, 0.28, 70, "spearman")
    noise = replace(noise, kind="retrieval", benchmark="retrieval")
    pair = [Measured({RECALL: m.samples["spearman"]}, m.notes) for m in (noise.base, noise.tuned)]
    broken = compare([searched(0.3, 0.6, 70), replace(noise, base=pair[0], tuned=pair[1])], EvaluateOptions())
    assert re.search(r"fell by .*too few to tell: 70 images make ±.* of text → image", broken.reason)
    assert "collapse" not in broken.reason
    noise = replace(searched(0.3, 0.3, 70), kind="query_log")
    of_log = compare([noise], EvaluateOptions(gate=GateRule(metric="query_log/ao@10", max_drop={}))).reason
    assert re.search(r"too few to tell: 70 queries make .* about [\d,]+ queries", of_log)


@pytest.mark.parametrize(("hits", "images", "untrained"), [(0.025, 400, True), (0.1, 400, False), (0.5, 19, False)])
def test_nothing_is_measured_on_a_base_near_chance(hits: float, images: int, untrained: bool) -> None:
    comparison = compare([searched(0.3, 0.6, images, hits=hits)], EvaluateOptions(gate=GateRule(max_drop={})))
    assert comparison.untrained == untrained
    assert comparison.reason.startswith("the base is near chance, so nothing can be measured on it") == untrained
    rows = [[row("paraphrased_retrieval", "ao@10", 1.0, 0.5, "paraphrased_queries")]] * 2
    if untrained:
        assert comparison.verdict == "hold" and "by chance among 400 images; take a" in comparison.reason
        # Only a run knows whether the base is one that it can train.
        assert "bootstrap" not in comparison.reason
        assert with_control(comparison, rows[0], rows[1], GateRule()).reason == comparison.reason
        # It knows the captions of another benchmark.
        knows = replace(searched(0.3, 0.6), benchmark="second")
        assert not compare([searched(0.3, 0.6, hits=hits), knows], EvaluateOptions()).untrained


@pytest.mark.parametrize(("clicks", "untrained"), [(20, False), (2000, True)])
def test_a_few_clicks_that_are_not_found_in_a_large_index_say_nothing_of_the_base(clicks: int, untrained: bool) -> None:
    searched_log = replace(searched(0.3, 0.6, clicks, hits=0.0), kind="query_log")
    pool = [replace(measured, notes={"images": 100_000}) for measured in (searched_log.base, searched_log.tuned)]
    options = EvaluateOptions(gate=GateRule(metric="query_log/ao@10", max_drop={}))
    comparison = compare([replace(searched_log, base=pool[0], tuned=pool[1])], options)
    assert comparison.untrained == untrained and comparison.verdict == ("hold" if untrained else "promote")


def outcome(gain: float = 0.2, images: int = 30) -> Outcome:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 3)
    values = rng.random(90)

    def measured(shift: float) -> Measured:
        return Measured(
            {"ao@10": Sample(values + shift, clusters)}, {"images": images}, {"caption": np.eye(3, dtype=int)}
        )

    return Outcome("paraphrased_queries", "paraphrased_retrieval", measured(0.0), measured(gain))


def test_rows_are_in_percent() -> None:
    comparison = compare([outcome()], ALONE, {"stsb": "its path is absent"})
    (only,) = comparison.rows
    assert (only.delta, only.low, only.high) == pytest.approx((20.0, 20.0, 20.0))
    assert (only.n, only.clusters) == (90, 30)
    assert only.tuned - only.base == pytest.approx(20.0, abs=1e-5)
    assert comparison.verdict == "promote"
    assert "stsb was left out: its path is absent" in comparison.notes
    assert json.loads(json.dumps(comparison.as_json()))["rows"][0]["metric"] == "ao@10"


def test_a_gain_among_few_images_is_held() -> None:
    held, promoted = (compare([outcome(images=n)], ALONE) for n in (19, 20))
    assert (held.verdict, promoted.verdict) == ("hold", "promote") and held.rows == promoted.rows
    assert held.reason == "the 19 images of paraphrased_queries prove nothing; use a split of 20 images or more"


@pytest.mark.parametrize(("queries", "verdict"), [(3, "hold"), (9, "hold"), (10, "promote")])
def test_a_gain_among_few_queries_is_held(queries: int, verdict: str) -> None:
    """A bootstrap of three values excludes zero whenever all three have one sign."""
    values, clusters = np.linspace(0.2, 0.6, queries), np.arange(queries)
    base, tuned = (Measured({"ao@10": Sample(values + gain, clusters)}, {"images": 200}) for gain in (0.0, 0.1))
    comparison = compare([Outcome("few", "paraphrased_retrieval", base, tuned)], ALONE)
    assert comparison.verdict == verdict
    if verdict == "hold":
        assert comparison.reason.startswith(f"the {queries} images of few prove nothing; use 10 or more")


def test_hard_negatives_without_a_margin_are_a_loss_that_is_named() -> None:
    rng, clusters = np.random.default_rng(0), np.arange(200)

    def pairs(kind: str, agreement: float) -> Measured:
        return Measured({kind: Sample(rng.normal(agreement, 0.01, 200), clusters)}, {"images": 200})

    gain = Outcome("mine", "query_pairs", pairs("ao@10", 0.4), pairs("ao@10", 0.5))
    alike = Outcome(
        "changed_words", "query_pairs", pairs("hard_negative_ao@10", 0.5), pairs("hard_negative_ao@10", 0.55)
    )
    reason = compare([gain, alike], ALONE).reason
    assert "significant losses: AO@10 with hard negatives of changed_words +4.96 " in reason


def test_summary_has_the_agreed_shape() -> None:
    comparison = compare([outcome()], ALONE, {"stsb": "its path is absent"})
    summary = comparison.summary({"finetune": "abc"})
    assert set(summary) == {"models", "deltas", "intervals", "verdict", "reason", "notes", "fingerprints"}
    assert summary["notes"] == list(comparison.notes) != []
    assert summary["deltas"]["paraphrased_queries"]["ao@10"] == pytest.approx(20.0)
    assert summary["intervals"]["paraphrased_queries"]["ao@10"] == pytest.approx([20.0, 20.0])
    assert summary["models"]["tuned"]["paraphrased_queries"]["ao@10"] == comparison.rows[0].tuned


@pytest.mark.parametrize(
    ("kind", "metric", "more"), [("sts", "spearman", 1), ("sugarcrepe", "text_only_closeness@x", -1)]
)
def test_a_gain_is_told_from_a_loss(kind: str, metric: str, more: int) -> None:
    sides = [Row("b", kind, metric, 1, 1, 0, low, low + 0.2, 10, 10).side for low in (0.1, -0.1, -0.3)]
    assert sides == [more, 0, -more]
