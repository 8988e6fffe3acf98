"""The report page: what it shows, that every text stays text, and that its bytes depend on its data alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import example, given, settings
from hypothesis import strategies as st

from paraclip_core.evaluation.compare import Row
from paraclip_core.report.data import (
    License,
    ParaphraseSample,
    QueryPair,
    RejectGroup,
    RejectSample,
    ReportData,
    StageRow,
    Training,
)
from paraclip_core.report.page import render_report

ROWS = (
    Row("pairs", "paraphrased_retrieval", "ao@10", 29.04, 31.0, 1.96, 1.2, 2.7, 900, 900),
    Row("recall", "retrieval", "text_to_image_recall@10", 54.0, 53.8, -0.2, -0.6, 0.2, 900, 900),
    Row("sts-b", "sts", "spearman", 60.0, 59.0, -1.0, -1.5, -0.5, 1379, 1379),
    Row("other", "no_such_module:MINE", "made_up@3", 1.0, 1.0, -0.001, -0.004, 0.003, 77, 77),
)


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full(text: str) -> ReportData:
    """Data with `text` wherever a text comes from outside."""
    pair = QueryPair(text, text, text, 0.2, 0.6, [text, "b"], ["b"], [text], [text, "b"])
    return ReportData(
        name=text,
        verdict="promote",
        reasons=[text],
        comparison=[Row(text, text, text, 1.0, 2.0, 1.0, 0.5, 1.5, 10, 10)],
        finetune=text,
        notes=[text],
        trainings=[Training("finetune", [{"step": 1, "loss": 2.0, "losses": {"image~caption": 2.0}}])],
        better=[pair],
        paraphrases=[ParaphraseSample(text, text, text, text, 0.9, None)],
        rejects=[RejectGroup("ingest", text, 1, [RejectSample(text, text, text)])],
        stages=[StageRow(text, text, 1, 1, {text: text}, {text: text}, {text: [text]})],
        versions={text: text},
        licenses=[License(text, 1, 1)],
        thumbnails={text: b"\xff\xd8"},
    )


PLAIN = Reader(render_report(full("plain")))


def test_figures_are_shown_as_percentages_and_points() -> None:
    page = render_report(ReportData("demo", "hold", ["it fell"], ROWS, "f" * 64))
    text = " ".join(Reader(page).text)
    assert "Hold: keep the base model" in text
    assert "AO@10 ↑ · pairs" in " ".join(text.split())
    figures = ("29.0", "31.0", "+1.96", "+1.20 to +2.70", "−0.20", "−1.50 to −0.50", "0.00", "1379")
    for shown in (*figures, "made up@3", "Paraphrased retrieval"):
        assert shown in text
    assert page.count('<tr class="up">') == 1
    assert page.count('<tr class="down">') == 1
    assert "lower is better" not in text
    rows = [Row("crepe", "sugarcrepe", "text_only_closeness@add_att", 86.4, 89.9, 3.5, 3.2, 3.8, 692, 692)]
    lower = Reader(render_report(ReportData("demo", "hold", [], rows, "f"))).text
    assert "text only closeness@add_att, lower is better" in " ".join(lower)
    scales = re.findall(r'<span class="ends">(.*?)</span></span>', page)
    assert len(scales) == len({row.facts.unit for row in ROWS}) and all("<span style" in scale for scale in scales)


def test_rows_on_their_way_into_training_are_shown_with_their_shares() -> None:
    funnel = [("rows read", 8000), ("asked", 4512), ("kept, in 320 paraphrases", 150), ("trained on", 137)]
    text = " ".join(Reader(render_report(ReportData("demo", "hold", [], [], "f" * 64, funnel=funnel))).text)
    shares = ("100.0\u00a0% of rows read", "56.4\u00a0% of rows read", "3.3\u00a0% of asked", "3.0\u00a0% of asked")
    for shown in ("8,000", "4,512", *shares):
        assert shown in text


def test_what_is_not_there_is_not_shown() -> None:
    page = render_report(ReportData("demo", "hold", [], [], "f" * 64))
    assert "Load the model" in page and "Provenance" not in page
    assert render_report(ReportData("demo", "hold", [], [], "f" * 64)) == page, "equal data, equal bytes"
    assert "Load the model" not in render_report(ReportData("demo", "hold", [], ROWS))
    pair = QueryPair("a", "x", "y", 0.1, 0.2, ["a"], ["a"], ["a"], ["a"])
    assert "thumb none shared right" in render_report(ReportData("demo", "hold", [], [], "f", better=[pair]))
    for untrained in (False, True):
        page = tiles(ReportData("demo", "hold", [], ROWS, untrained=untrained, control=ROWS))
        assert ('class="tiles"' in page) == ("The big figures" in page) != untrained


def test_figures_are_explained_and_licenses_are_counted() -> None:
    shown = [ParaphraseSample("i", "a caption", "one", "two", figure) for figure in (None, 0.9)]
    pages = [render_report(ReportData("demo", "hold", [], [], "f" * 64, paraphrases=[sample])) for sample in shown]
    assert ["cosines of a sentence encoder" in page for page in pages] == [False, True]
    licenses = [License("CC0-1.0", 10, 5), License("CC-BY-NC-4.0", 3, 2), License("CC-BY-ND-4.0", 2, 0)]
    page = render_report(ReportData("demo", "hold", [], [], "f" * 64, licenses=licenses))
    assert '<td>CC-BY-NC-4.0</td><td class="n">3</td><td class="n">2</td>' in page


def test_a_picture_is_embedded_once_however_often_it_is_shown() -> None:
    pair = QueryPair("a", "x", "y", 0.1, 0.2, ["a", "b"], ["b", "a"], ["a"], ["a"])
    data = ReportData("demo", "hold", [], [], "f", better=[pair], worse=[pair], thumbnails={"a": b"AAA", "b": b"BBB"})
    page = render_report(data)
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count('class="thumb t0') == 8


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=60))
@example("<script>alert(1)</script>")
@example('"><img src=x onerror=alert(1)>')
@example("'; }</style><b>")
@example("{{ 7*7 }}")
@settings(max_examples=30, deadline=None)
def test_any_text_stays_text(text: str) -> None:
    hostile = Reader(render_report(full(text)))
    assert hostile.tags == PLAIN.tags and "script" not in hostile.tags
    assert hostile.attributes == PLAIN.attributes
    assert text in hostile.text


def tiles(data: ReportData) -> str:
    page = render_report(data)
    return page[page.index("<main>") : page.index('id="comparison"')]


def moved(by: float, swap: bool = False) -> list[Row]:
    """The rows, with the difference changed and the base or, with `swap`, the tuned model as well."""
    at = "tuned" if swap else "base"
    return [
        replace(r, **{at: r.base - by, "delta": r.delta + by, "low": r.low + by, "high": r.high + by}) for r in ROWS
    ]


def test_the_tuned_model_against_its_base_comes_first_and_the_control_second() -> None:
    shown = tiles(ReportData("demo", "promote", ["a", "b"], ROWS, over_control=moved(-1), control=moved(0, True)))
    text = " ".join(" ".join(Reader(shown).text).split())
    assert "+1.96 29.0 → 31.0, +1.20 to +2.70 over the caption-only control +0.96 , +0.20 to +1.70" in text
    assert '<b class="up">+1.96' in shown and "what is gained over it is the paraphrases' own" in text
    assert "caption-only control" not in tiles(ReportData("demo", "hold", [], ROWS))


def test_colors_follow_the_verdict_and_a_control_that_fell_shows_no_gain() -> None:
    """Seen: three big green gains over a collapsed control, on a page that held a model worse than its base."""
    data = ReportData("demo", "hold", ["it fell"], moved(-4), control=moved(-14, True))
    shown = tiles(data)
    assert "up" not in set(re.findall(r'class="(\w+)"', shown)) and '<b class="down">−2.04' in shown
    assert "no control: captions alone −12.04" in shown and "over the caption-only control" not in shown
    better = ReportData("demo", "hold", [], ROWS, over_control=moved(-9), control=moved(0, True))
    assert '<b class="">+1.96' in tiles(better) and '<em class="down">−7.04</em>' in tiles(better)


def test_it_says_what_measures_mean_and_what_was_counted() -> None:
    protocols = {"pairs": {"images": 1000, "pairs": 9983, "split": "val", "protocol": "…", "equal": True}}
    facts = {"trained on": "137 of 4,512 captions", "date": "2026-01-02", "command": "paraclip run -c settings.yaml"}
    data = ReportData("demo", "hold", [], ROWS, "f" * 64, facts=facts, settings="name: <demo>\n", protocols=protocols)
    text = " ".join(" ".join(Reader(render_report(data)).text).split())
    for shown in (
        "AO@10: how far the first 10 images for a query and its paraphrase agree",
        "Paraphrased retrieval · 1,000 images searched · 9,983 pairs · split val",
        *facts.values(),
        "name: <demo>",
        "↑ marks figures of which more is better",
    ):
        assert shown in text
