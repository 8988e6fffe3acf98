"""Evidence → findings → verdict, as tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import compare
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.options import GateRule
from paraclip_core.evaluation.power import images_needed
from paraclip_core.evaluation.rows import Outcome, Row, compared_rows
from paraclip_core.evaluation.verdict import AGAINST_BASE, AGAINST_CHAMPION
from paraclip_core.evaluation.verdict.evidence import Evidence, searched_images
from paraclip_core.evaluation.verdict.finding import Finding, from_json, line, paragraphs

RECORDED = [json.loads(text) for text in Path("tests/data/verdicts.jsonl").read_text("utf-8").splitlines()]
"""Rows as kind, benchmark, metric, base, difference, low, high, queries, clusters; verdicts as runs printed them, or as
code before this one decided on figures drawn at random. A changed one has what it `was`, and `because`."""
PARAPHRASED, RECALL = "paraphrased_retrieval", "text_to_image_recall@10"


def rows(plain: list[list[Any]]) -> tuple[Row, ...]:
    return tuple(
        Row(name, kind, metric, base, base + delta, delta, *more) for kind, name, metric, base, delta, *more in plain
    )


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["of"])
def test_a_verdict_is_what_it_was(case: dict[str, Any]) -> None:
    against_champion = case["gate_of"] == "champion"
    evidence = Evidence(
        rows(case["rows"]),
        GateRule(**case["gate"]),
        images=case["images"],
        over_control=rows(case.get("over_control", [])),
        control=rows(case.get("control", [])),
        champions_own=rows(case.get("champion", [])),
        challengers_own=rows(case.get("challenger", [])),
    )
    verdict, findings = (AGAINST_CHAMPION if against_champion else AGAINST_BASE).judge(evidence)
    assert verdict == case["verdict"]
    assert list(dict.fromkeys(finding.code for finding in findings)) == case["codes"]


def row(rule: str, delta: float, low: float, name: str = "", clusters: int = 10, base: float = 50.0) -> Row:
    kind, _, metric = rule.partition("/")
    return Row(name or kind, kind, metric, base, base + delta, delta, low, delta + (delta - low), 10, clusters)


AO = f"{PARAPHRASED}/corrected_ao@10"
GAIN = row(AO, 1.0, 0.4)
NO_GAIN = row(AO, 0.1, -0.3)
SAME = row(f"retrieval/{RECALL}", 0.0, -0.5)
FELL = row(f"retrieval/{RECALL}", -15.5, -17.0)
CAPTIONS_FELL = row(f"{PARAPHRASED}/caption_{RECALL}", -80, -85)
MARGIN = row("query_pairs/margin", -3.0, -4.0, "sick")
MORE_FOUND = row(f"{PARAPHRASED}/paraphrased_query_{RECALL}", 2.0, 0.5)
LOST_TOGETHER = [row(f"retrieval/text_to_image_recall@{k}", delta, low) for k, delta, low in
                 ((1, 0.0, -2.0), (5, 0.0, -2.0), (10, -2.0, -3.9))]  # fmt: skip
CLICKS = row(f"query_log/caption_{RECALL}", -30, -31)
HEADLINE = row(f"{PARAPHRASED}/paraphrased_query_{RECALL}", 10.3, 8.0, base=19.9)
CLOSER = "sugarcrepe/text_only_closeness@add_obj"


def seen(*figures: Row, **more: Any) -> Evidence:
    return Evidence(figures, GateRule(), **more)


def controlled(over: Row, control: Row = NO_GAIN, **more: Any) -> Evidence:
    return seen(GAIN, SAME, over_control=(over,), control=(control,), **more)


PASSED, COLLAPSED, ALONE = seen(GAIN, SAME), seen(GAIN, FELL), seen(GAIN)
LOG = seen(row("query_log/corrected_ao@10@rules", 1, 0.5), row("query_log/js@10", 1, 0.5))
FEW = seen(row(AO, 0.0, -4, clusters=70))
TABLE: list[tuple[Evidence, str, str, str]] = [
    # Evidence, code, effect, and words of the sentence.
    (PASSED, "gain", "promotes", f"{GAIN.name} +1.00 [+0.40, +1.60] is clear of zero"),
    (PASSED, "no_rule_broken", "explains", f"of 1 guarded figures is lost, the lowest of them {SAME}"),
    (PASSED, "agreement_alone", "explains", "are not known, so agreement alone decides"),
    (seen(GAIN, SAME, MORE_FOUND), "agreement_alone", "", ""),
    (seen(NO_GAIN, MORE_FOUND), "finds_more", "promotes", f"{MORE_FOUND} is clear of zero, with {NO_GAIN}"),
    (seen(row(AO, -2.8, -4.9), MORE_FOUND), "loss", "blocks", "lies below zero"),
    (seen(GAIN, row(f"{PARAPHRASED}/caption_text_to_image_recall@5", -2.2, -3.4)), "beyond_max_drop", "blocks", "@5"),
    # What the set cannot tell from chance does not hold, but is named.
    (seen(GAIN, row(f"retrieval/{RECALL}", -3.0, -6.5)), "beyond_max_drop", "", ""),
    (seen(GAIN, row(f"retrieval/{RECALL}", -3.0, -6.5)), "blunt_guard", "notes", "so few images show a loss of"),
    (seen(GAIN, *LOST_TOGETHER), "small_losses", "warns", "what chance gives one of 3 figures"),
    (seen(GAIN, row(f"retrieval/{RECALL}", -0.5, -0.9)), "small_losses", "warns", "-0.50 [-0.90, -0.10]"),
    # Clicks on what the base showed guard nothing.
    (seen(GAIN, CLICKS), "beyond_max_drop", "", ""),
    (seen(GAIN, CLICKS), "significant_losses", "", ""),
    (seen(GAIN, CLICKS, independent_clicks=True), "beyond_max_drop", "blocks", "clicked"),
    (COLLAPSED, "beyond_max_drop", "blocks", f"{FELL.name} fell by 15.50 (-15.50 [-17.00, -14.00]), at most 1 is"),
    (COLLAPSED, "remedy", "explains", "a smaller α"),
    (seen(NO_GAIN), "no_gain", "blocks", "is not clear of zero"),
    (seen(row(AO, -2.8, -4.9)), "loss", "blocks", "-2.80 [-4.90, -0.70] lies below zero"),
    (seen(row("sts/spearman", 1, 0.5)), "metric_not_measured", "blocks", "gain; measured: spearman of the kind"),
    (LOG, "metric_stand_in", "", ""),
    (LOG, "metric_not_measured", "blocks", "measured: JS@10 of the kind query_log"),
    (seen(), "metric_not_measured", "blocks", "measured: nothing"),
    (seen(), "remedy", "explains", "a benchmark of the kind paraphrased_retrieval"),
    (seen(row("query_pairs/corrected_ao@10", 1, 0.4)), "metric_stand_in", "notes", "corrected_ao@10 stands in for"),
    (seen(GAIN, row("retrieval/recall@10", 0, -1)), "rule_without_metric", "blocks", "names no measured metric"),
    (ALONE, "rule_not_applied", "notes", f"the rule on retrieval/{RECALL} was not applied: it was not measured"),
    (seen(GAIN, CAPTIONS_FELL), "rule_stand_in", "notes", f"was applied to {PARAPHRASED}/caption_{RECALL}"),
    (seen(GAIN, CAPTIONS_FELL), "beyond_max_drop", "blocks", "caption → image recall@10 of paraphrased_retrieval fell"),
    (seen(GAIN, MARGIN), "only_margin_fell", "blocks", "hard negatives of sick -3.00 [-4.00, -2.00], and nothing that"),
    (seen(GAIN, MARGIN), "margin_fell", "warns", "the margin changes by -3.00 [-4.00, -2.00] over the base on sick"),
    (controlled(MARGIN), "margin_fell", "warns", "[-4.00, -2.00] over the control on sick"),
    (seen(GAIN, MARGIN, rival="the champion"), "margin_fell", "warns", "over the champion on sick"),
    (seen(HEADLINE), "found_images", "explains", "30.2 of 100 paraphrased queries of paraphrased_retrieval find their"),
    (seen(HEADLINE), "found_images", "explains", "(+10.3)"),
    (seen(row(f"query_log/paraphrased_query_{RECALL}", 1, 0)), "found_images", "explains", "which guard nothing"),
    (seen(GAIN, first_image_changes=44.4), "first_images", "explains", "44 of 100 queries show another first image"),
    (seen(GAIN, different_images={"q": (90, 80)}), "different_images", "notes", "hold 80 different images (90 with"),
    (seen(GAIN, row("sts/accuracy", -10, -11)), "significant_losses", "warns", "of sts -10.00 [-11.00, -9.00]"),
    (seen(row("query_pairs/hard_negative_ao@10", 5, 4)), "significant_losses", "warns", "hard negatives of"),
    (seen(GAIN, skipped={"stsb": "it is absent"}), "left_out", "notes", "stsb was left out: it is absent"),
    (seen(GAIN, SAME, alpha=0.0), "tuned_is_base", "explains", "the tuned model is the base (α = 0)"),
    (seen(GAIN, SAME, images={"pool": 19}), "few_images", "blocks", "the 19 images of pool prove nothing; use a split"),
    (seen(replace(GAIN, clusters=9), SAME), "few_queries", "blocks", "the 9 images of paraphrased_retrieval prove"),
    (seen(row(AO, 0.0, 0.0, clusters=4000)), "remedy", "explains", "more captions, or paraphrases of a more capable"),
    (FEW, "too_few", "explains", f"70 images make ±4.0 points of {GAIN.name}, and a change of 2 needs"),
    (FEW, "too_few", "explains", f" needs about {images_needed(70, 4.0):,} images"),
    (seen(row("query_log/corrected_ao@10", 0.0, -4, clusters=70)), "too_few", "explains", "70 queries make"),
    # The caption-only control.
    (controlled(GAIN), "over_control", "explains", f"over the caption-only control {GAIN}"),
    (controlled(GAIN, row(AO, -0.2, -0.3)), "over_control", "explains", "counts the control's own fall below the base"),
    (controlled(GAIN, control_at_point="here +1"), "control_at_point", "explains", "here +1"),
    (controlled(NO_GAIN), "control_as_good", "blocks", "not clear of zero, so a gain may be that of more training"),
    (controlled(row(AO, -0.6, -0.9)), "control_better", "blocks", "the paraphrases do not pay"),
    (controlled(GAIN, row(AO, -13.2, -16.0)), "control_fell", "blocks", f"fell below the base ({GAIN.name} -13.20"),
    (controlled(GAIN, FELL), "control_fell", "blocks", f"({FELL.name} -15.50"),
]
"""A row for each branch of each rule."""


@pytest.mark.parametrize(("evidence", "code", "effect", "words"), TABLE, ids=[code for _, code, _, _ in TABLE])
def test_a_finding(evidence: Evidence, code: str, effect: str, words: str) -> None:
    verdict, findings = AGAINST_BASE.judge(evidence)
    having = [finding for finding in findings if finding.code == code]
    assert [finding.effect for finding in having] == [effect] * len(having)
    assert any(words in finding.text for finding in having) == bool(effect)
    if effect == "blocks":
        assert verdict == "hold"


WORSE, STEP = row(AO, -30, -31), row(AO, 1.2, 0.6)
CHALLENGES: list[tuple[Evidence, str, str, str]] = [
    # Evidence, verdict, code, words.
    (seen(STEP), "promote", "step", "is a gain of 1 point and 3 standard errors"),
    (seen(row(AO, 0.9, 0.6)), "hold", "no_step", "is no gain of 1 point and 3 standard errors"),
    (seen(row(AO, 2.0, 0.4)), "hold", "no_step", "for which users would see other images"),
    (seen(row(AO, 0.2, -0.5), new_captions=19.0), "hold", "no_step", ""),
    (seen(row(AO, 0.2, -0.5), new_captions=21.0), "promote", "refresh", "21 % of the captions are new to the champion"),
    (seen(row(AO, -1.5, -2.0), new_captions=21.0), "hold", "loss", "-1.50 [-2.00, -1.00] lies below zero"),
    (seen(STEP, FELL), "hold", "beyond_max_drop", "fell by 15.50"),
    (seen(WORSE, champions_own=(SAME,), challengers_own=(SAME,)), "hold", "loss", ""),
    (seen(WORSE, champions_own=(FELL,), challengers_own=(SAME,)), "promote", "champion_fails", f"({FELL.name} fell by"),
    (seen(WORSE, FELL, champions_own=(FELL,)), "hold", "beyond_max_drop", "fell by 15.50"),
    (seen(WORSE, champions_own=(CAPTIONS_FELL,)), "promote", "champion_fails", "caption → image"),
    (seen(STEP, champions_own=(FELL,), challengers_own=(FELL,)), "hold", "challenger_fails", "against its own base"),
]


@pytest.mark.parametrize(("evidence", "verdict", "code", "words"), CHALLENGES)
def test_a_challenger_replaces_a_champion_for_a_step_or_a_refresh(
    evidence: Evidence, verdict: str, code: str, words: str
) -> None:
    judged, findings = AGAINST_CHAMPION.judge(evidence)
    assert judged == verdict
    assert any(finding.code == code and words in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("changes", "most", "code"), [(30, None, ""), (30, 30, ""), (31, 30, "churn"), (None, 30, "churn_not_measured")]
)
def test_no_more_first_images_change_than_are_allowed(changes: float | None, most: float | None, code: str) -> None:
    gate = GateRule(max_first_image_changes=most)
    verdict, findings = AGAINST_CHAMPION.judge(Evidence((STEP,), gate, first_image_changes=changes))
    assert (verdict, [f.code for f in findings if f.effect == "blocks"]) == (
        ("hold", [code]) if code else ("promote", [])
    )


def test_of_a_metric_that_is_better_when_lower_a_rise_is_a_loss() -> None:
    fell, rose = row(CLOSER, -2.0, -2.5), row(CLOSER, 2.0, 1.5)
    drop, gate = GateRule(max_drop={CLOSER: 1.0}), GateRule(metric=CLOSER, max_drop={})
    lost = line(AGAINST_BASE.judge(Evidence((GAIN, rose), drop))[1])
    assert "closeness@add_obj of sugarcrepe rose by 2.00 (+2.00 [+1.50, +2.50]), at most 1" in lost
    for judge in (AGAINST_BASE, AGAINST_CHAMPION):
        assert [judge.judge(Evidence((figure,), gate))[0] for figure in (fell, rose)] == ["promote", "hold"]
    assert AGAINST_BASE.judge(Evidence((GAIN, fell), drop))[0] == "promote"
    assert "+2.00 [+1.50, +2.50] lies above zero" in AGAINST_CHAMPION.judge(Evidence((rose,), gate))[1][0].text


@pytest.mark.parametrize(
    ("recall", "images", "clusters", "known_elsewhere", "near"),
    [
        (2.5, 400, 400, False, True),
        (10.0, 400, 400, False, False),
        (2.5, 400, 400, True, False),
        (50.0, 19, 400, False, False),
        # A few clicks that are not found in a large index say nothing of the base.
        (0.0, 100_000, 20, False, False),
        (0.0, 100_000, 2000, False, True),
    ],
)
def test_nothing_is_measured_on_a_base_near_chance(
    recall: float, images: int, clusters: int, known_elsewhere: bool, near: bool
) -> None:
    captions = row(f"{PARAPHRASED}/caption_{RECALL}", 0.0, -1.0, clusters=clusters, base=recall)
    known = row(f"retrieval/{RECALL}", 0.0, -1.0, "second", 400) if known_elsewhere else captions
    evidence = Evidence((GAIN, captions, known), GateRule(), images={PARAPHRASED: images, "second": 400})
    comparison = compare(evidence)
    assert comparison.untrained == near
    if near:
        only, *more = comparison.findings
        assert comparison.verdict == "hold" and not more
        assert f"by chance among {images:,} images; take a pretrained one" in only.text
        assert "built_in_base.epochs" not in only.text
        assert "built_in_base.epochs" in compare(replace(evidence, built_in_base=True)).findings[0].text


def test_findings_are_data_for_programs_and_sentences_for_people() -> None:
    evidence = Evidence((HEADLINE, GAIN, FELL), GateRule(), over_control=(GAIN,), control=(NO_GAIN,))
    comparison = compare(evidence)
    summary = comparison.summary({"finetune": "abc"})
    assert json.loads(json.dumps(comparison.as_json()))["findings"] == summary["findings"]
    (lost,) = [finding for finding in summary["findings"] if finding["code"] == "beyond_max_drop"]
    figure = {"benchmark": "retrieval", "metric": RECALL, "delta": -15.5, "low": -17.0, "high": -14.0}
    assert lost["effect"] == "blocks" and lost["figures"] == [figure]
    again = from_json(summary["findings"])
    assert [finding.as_json() for finding in again] == summary["findings"]
    assert line(again) == summary["reason"] == "; ".join(paragraphs(again))
    assert summary["notes"] and not {*summary["notes"]} & {*paragraphs(again)}
    # A sentence may hold a semicolon; it stays one paragraph.
    assert paragraphs([Finding("x", "blocks", "a; b"), Finding("y", "notes", "c")]) == ["a; b"]


def test_a_control_that_fell_shows_no_gain_over_it() -> None:
    worthless = compare(Evidence((GAIN, SAME), GateRule(), over_control=(GAIN,), control=(FELL,)))
    sound = compare(Evidence((GAIN, SAME), GateRule(), over_control=(GAIN,), control=(NO_GAIN,)))
    assert "over_control" not in worthless.summary({}).keys() | worthless.as_json().keys()
    summary = sound.summary({})
    assert summary["over_control"][PARAPHRASED]["corrected_ao@10"] == [1.0, 0.4, 1.6]
    assert summary["control"][PARAPHRASED]["corrected_ao@10"] == pytest.approx([0.1, -0.3, 0.5])
    assert summary["models"]["control"][PARAPHRASED] == {"corrected_ao@10": 50.1}
    assert not {"over_control", "control"} & compare(Evidence((GAIN,), GateRule())).as_json().keys()
    # A margin that falls does not invalidate a control: hard negatives may agree more, too.
    gate = GateRule(max_drop={"query_pairs/margin": 1.0})
    assert Evidence((GAIN,), gate, over_control=(GAIN,), control=(MARGIN,)).shown_over_control == (GAIN,)


def test_from_measured_values_to_a_verdict() -> None:
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(30), 3)
    values = rng.random(90)

    def measured(shift: float) -> Measured:
        return Measured({"corrected_ao@10": Sample(values + shift, clusters)}, {"images": 30})

    outcome = Outcome("paraphrased_queries", PARAPHRASED, measured(0.0), measured(0.2))
    comparison = compare(Evidence(compared_rows([outcome]), GateRule(max_drop={}), images=searched_images([outcome])))
    (only,) = comparison.rows
    assert (only.delta, only.low, only.high) == pytest.approx((20.0, 20.0, 20.0))
    assert (only.n, only.clusters) == (90, 30) and comparison.verdict == "promote"
    summary = comparison.summary({"finetune": "abc"})
    assert summary["deltas"]["paraphrased_queries"]["corrected_ao@10"] == pytest.approx(20.0)
    assert summary["intervals"]["paraphrased_queries"]["corrected_ao@10"] == pytest.approx([20.0, 20.0])
    assert summary["models"]["tuned"]["paraphrased_queries"]["corrected_ao@10"] == only.tuned
    few = Measured({"spearman": Sample(np.ones(3), np.zeros(3, int))}, {})
    with pytest.raises(Exception, match=re.escape("benchmark 'tiny', spearman:") + ".* at least two"):
        compared_rows([Outcome("tiny", "sts", few, few)])


@pytest.mark.parametrize(
    ("kind", "metric", "more"), [("sts", "spearman", 1), ("sugarcrepe", "text_only_closeness@x", -1)]
)
def test_a_gain_is_told_from_a_loss(kind: str, metric: str, more: int) -> None:
    sides = [Row("b", kind, metric, 1, 1, 0, low, low + 0.2, 10, 10).side for low in (0.1, -0.1, -0.3)]
    assert sides == [more, 0, -more]
