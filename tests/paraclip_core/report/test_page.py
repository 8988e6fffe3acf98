"""The report page: what it shows, that every text stays text, and that its bytes depend on its data alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paraclip_core.evaluation.churn import ChangedQuery, Churn, Relevance
from paraclip_core.evaluation.rows import Row
from paraclip_core.evaluation.thresholds import Spread, Threshold
from paraclip_core.report.data import (
    License,
    ParaphraseSample,
    QueryPair,
    RejectGroup,
    RejectSample,
    ReportData,
    StageRow,
)
from paraclip_core.report.page import render_report

COSINES = Spread([0.2, 0.25, 0.3, 0.35, 0.4], [0.05, 0.075, 0.1, 0.125, 0.15])
ROWS = (
    Row("pairs", "paraphrased_retrieval", "ao@10", 29.04, 31.0, 1.96, 1.2, 2.7, 900, 900),
    Row("recall", "retrieval", "text_to_image_recall@10", 54.0, 53.8, -0.2, -0.6, 0.2, 900, 900),
    Row("sts-b", "sts", "spearman", 60.0, 59.0, -1.0, -1.5, -0.5, 1379, 1379),
    Row("other", "no_such_module:MINE", "made_up@3", 1.0, 1.0, -0.001, -0.004, 0.003, 77, 77),
)


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), set[str](), list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def churned(text: str, **changes: Any) -> Churn:
    """Two queries, of which one changes, with all that a page can show."""
    figures: dict[str, Any] = {
        "queries": 3000, "images": 1000, "depth": 10, "overlap": 62.0, "first_image_changes": 24.0,
        "overlaps": [1.0, 2.0, 4.0, 8.0, 10.0, 15.0, 20.0, 20.0, 10.0, 7.0, 3.0], "benchmark": text,
        "known": Relevance(2900, 120, 80, 50, 40),
        "most_changed": [
            ChangedQuery(text, 1, [text, "b"], ["c", text], [text]), ChangedQuery("unmoved", 2, ["b"], ["b"], []),
        ],
        "cosines": {"base": COSINES, "tuned": COSINES}, "thresholds": [Threshold(0.25, 0.3125, 12.5, 40.25)],
    }  # fmt: skip
    return Churn(**{**figures, **changes})


def full(text: str) -> ReportData:
    """Data with `text` wherever a text comes from outside."""
    pair = QueryPair(text, text, text, 0.2, 0.6, [text, "b"], ["b"], [text], [text, "b"])
    return ReportData(
        name=text, verdict="promote", reasons=[text], finetune=text, notes=[text], versions={text: text},
        comparison=[Row(text, text, text, 1.0, 2.0, 1.0, 0.5, 1.5, 10, 10)], better=[pair],
        losses={text: [(1, 2.0), (2, 1.0)]},
        churn=churned(text), paraphrases=[ParaphraseSample(text, text, text, text, 0.9, None)],
        rejects=[RejectGroup("ingest", text, 1, [RejectSample(text, text, text)])], licenses=[License(text, 1, 1)],
        stages=[StageRow(text, text, 1, 1, {text: text}, {text: text}, {text: [text]})],
        thumbnails={text: b"\xff\xd8"},
    )  # fmt: skip


PLAIN = Reader(render_report(full("plain")))


def data(comparison: Sequence[Row] = (), verdict: str = "hold", **more: Any) -> ReportData:
    return ReportData("demo", verdict, ["it fell"], comparison, "f" * 64, **more)


def words(page: str) -> str:
    """The text that a page shows."""
    return re.sub(r"[ \n]+", " ", " ".join(Reader(page).text))


def tiles(data: ReportData) -> str:
    page = render_report(data)
    return page[page.index("<main>") : page.index('id="comparison"')]


FACTS = {"trained on": "137 of 4,512 captions", "date": "2026-01-02", "command": "paraclip run -c settings.yaml"}
PROTOCOL = {"images": 1000, "pairs": 9983, "split": "val", "protocol": "…", "equal": True}
LICENSES = [License("CC0-1.0", 10, 5), License("CC-BY-NC-4.0", 3, 2), License("CC-BY-ND-4.0", 2, 0)]
PAIR = QueryPair("a", "x", "y", 0.1, 0.2, ["a", "b"], ["b", "a"], ["a"], ["a"])
FUNNEL = [("rows read", 8000), ("asked", 4512), ("kept, in 320 paraphrases", 150), ("trained on", 137)]
CREPE = Row("crepe", "sugarcrepe", "text_only_closeness@add_att", 86.4, 89.9, 3.5, 3.2, 3.8, 692, 692)
SHARES = "100.0\u00a0% of rows read | 56.4\u00a0% of rows read | 3.3\u00a0% of asked | 3.0\u00a0% of asked"
MEASURES = """AO@10: how far the first 10 images for a query and its paraphrase agree
Paraphrased retrieval · 1,000 images searched · 9,983 pairs · split val | ↑ marks figures of which more is better"""
FIGURES = """Hold: keep the base model | AO@10 ↑ · pairs | 29.0 | 31.0 | +1.96 | +1.20 to +2.70 | −0.20
−1.50 to −0.50 | 0.00 | 1379 | made up@3 | Paraphrased retrieval"""
CHANGES = """For the same query, 6.2 of the first ten images stay on average
24 of 100 queries show another first image; of 2,900 queries whose right image is known, 120 got better
80 got worse (it left them) | 50 newly show it first and 40 no longer
3,000 queries of pairs over 1,000 images
of the base's first 10 images stay 0 1 2 3 | share of queries, % 1.0 2.0 4.0 8.0 10.0 15.0 | 0.2500 12.50 40.25 0.3125
5 % 25 % 50 % | its first image, base 0.2000 0.2500
1 of 10 stay"""
SWEEP = [{"alpha": a, "ao@10": 30 + 8 * a, "overlap@10": 100 - 30 * a} for a in (0.0, 0.5, 1.0)]
KEY = {"recipe": "ranking", "learning_rate": 1e-3}
CANDIDATES = {
    "candidates": [
        {**KEY, "learning_rate": 1e-4, "alphas": [], "stopped": "worse"}, {**KEY, "alphas": SWEEP, "stopped": None},
    ],
    "chosen": {**KEY, "alpha": 0.5}, "rule": "best", "notes": [],
}  # fmt: skip
LOSSES = {"built_in_base": [], "finetune": [(step, 9.0 - step / 1000) for step in range(1, 5001)]}
CURVES = """Chosen on held-out images: ranking at 0.001, α = 0.5 | ranking at 0.0001: worse
finetune: loss by step, 4.00 after 5,000 | 8.999 4 1 5000 | AO@10 by α: 30.0 at 0, 34.0 at 0.5
overlap@10 by α: 100.0 at 0, 85.0 at 0.5 | 38 30 0 1"""
SHOWN = [
    (FIGURES, data(ROWS)),
    ("text only closeness@add_att, lower is better", data([CREPE])),
    (f"8,000 | 4,512 | {SHARES}", data(funnel=FUNNEL)),
    (MEASURES, data(ROWS, protocols={"pairs": PROTOCOL})),
    (" | ".join([*FACTS.values(), "name: <demo>"]), data(facts=FACTS, settings="name: <demo>\n")),
    (CHANGES, data(churn=churned("pairs"))),
    (CURVES, data(losses=LOSSES, candidates=CANDIDATES)),
    ("CC-BY-NC-4.0 3 2 | CC-BY-ND-4.0 2 0", data(licenses=LICENSES)),
]


@pytest.mark.parametrize(
    ("expected", "shown"),
    SHOWN,
    ids=["figures", "direction", "funnel", "measures", "facts", "churn", "curves", "licenses"],
)
def test_what_is_shown(expected: str, shown: ReportData) -> None:
    text = words(render_report(shown))
    assert [one for one in re.split(r" \| |\n", expected) if one not in text] == []


def test_rows_have_their_direction_and_units_a_scale() -> None:
    page = render_report(data(ROWS))
    assert (page.count('<tr class="up">'), page.count('<tr class="down">')) == (1, 1)
    assert "lower is better" not in words(page)
    scales = re.findall(r'<span class="ends">(.*?)</span></span>', page)
    assert len(scales) == len({row.facts.unit for row in ROWS}) and all("<span style" in scale for scale in scales)


def test_curves_are_small_and_mark_what_was_chosen() -> None:
    page = render_report(data(losses=LOSSES, candidates=CANDIDATES))
    drawn = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    marked = [[circle.attrib["cx"] for circle in svg.iter("{http://www.w3.org/2000/svg}circle")] for svg in drawn]
    assert marked == [["252.0"], ["147.0"], ["147.0"]] and 'aria-label="AO@10 by α' in page
    lines = re.findall(r'points="(.*?)"', page)
    assert lines[1].split() == ["42.0,96.0", "147.0,53.0", "252.0,10.0"]
    assert 290 < len(lines[0].split()) < 310
    assert 'id="training"' not in render_report(data(losses={"finetune": []}))


def test_what_is_not_there_is_not_shown() -> None:
    page = render_report(data())
    assert "Load the model" in page and "Provenance" not in page
    assert render_report(data()) == page, "equal data, equal bytes"
    assert "Load the model" not in render_report(replace(data(ROWS), finetune=""))
    for figure in (None, 0.9):
        sample = ParaphraseSample("i", "a caption", "one", "two", figure)
        page = render_report(data(paraphrases=[sample]))
        assert ("cosines of a sentence encoder" in page) == (figure is not None)
    for untrained in (False, True):
        page = tiles(data(ROWS, untrained=untrained, control=ROWS))
        assert ('class="tiles"' in page) == ("The big figures" in page) != untrained


def test_a_picture_is_embedded_once_however_often_it_is_shown() -> None:
    page = render_report(data(better=[PAIR], worse=[PAIR], thumbnails={"a": b"AAA", "b": b"BBB"}))
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count('class="thumb t0') == 8
    assert "thumb none shared right" in render_report(data(better=[PAIR]))


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=60))
@example("<script>alert(1)</script>")
@example('"><img src=x onerror=alert(1)>')
@example("'; }</style><b>")
@example("{{ 7*7 }}")
@settings(max_examples=15)
def test_any_text_stays_text(text: str) -> None:
    hostile = Reader(render_report(full(text)))
    assert hostile.tags == PLAIN.tags and "script" not in hostile.tags
    assert hostile.attributes == PLAIN.attributes
    assert text in hostile.text


def moved(by: float, swap: bool = False) -> list[Row]:
    """The rows, with the difference changed and the base or, with `swap`, the tuned model as well."""
    at = "tuned" if swap else "base"
    more = ("delta", "low", "high")
    return [replace(r, **{at: r.base - by}, **{name: getattr(r, name) + by for name in more}) for r in ROWS]


def test_the_tuned_model_against_its_base_comes_first_and_the_control_second() -> None:
    shown = tiles(data(ROWS, "promote", over_control=moved(-1), control=moved(0, True)))
    assert "+1.96 29.0 → 31.0, +1.20 to +2.70 over the caption-only control +0.96 , +0.20 to +1.70" in words(shown)
    assert '<b class="up">+1.96' in shown and "what is gained over it is the paraphrases' own" in words(shown)
    assert "caption-only control" not in tiles(data(ROWS))


def test_colors_follow_the_verdict_and_a_control_that_fell_shows_no_gain() -> None:
    """Seen: three big green gains over a collapsed control, on a page that held a model worse than its base."""
    shown = tiles(data(moved(-4), control=moved(-14, True)))
    assert "up" not in set(re.findall(r'class="(\w+)"', shown)) and '<b class="down">−2.04' in shown
    assert "no control: caption-only −12.04" in shown and "over the caption-only control" not in shown
    better = tiles(data(ROWS, over_control=moved(-9), control=moved(0, True)))
    assert '<b class="">+1.96' in better and '<em class="down">−7.04</em>' in better


def test_queries_that_change_have_pictures_or_ids() -> None:
    shown = data(churn=churned("a"), thumbnails={"a": b"\xff\xd8"})
    page = render_report(shown)
    assert page.count('class="thumb t0 shared right"') == 2 and page.count('class="thumb none"') == 2
    assert "unmoved" not in page, "a query that does not change is not shown"
    bare = render_report(data(churn=churned("a")))
    assert 'class="thumb' not in bare and '<p class="mono"><b>a</b>, b</p>' in bare
    assert 'id="churn"' not in render_report(data())
    few = churned("a", depth=4, overlaps=[0.0, 0.0, 50.0, 0.0, 50.0], known=None, thresholds=[], benchmark="")
    text = words(render_report(data(churn=few)))
    assert "2.5 of the first 4 images stay" in text and "right image" not in text and "Thresholds" not in text
