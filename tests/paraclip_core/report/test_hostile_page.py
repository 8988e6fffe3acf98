"""Every hostile text stays text on the report page, wherever a text comes from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.captions.clean import clean
from paraclip_core.evaluation.compare import Row
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

DATA = Path(__file__).parents[2] / "data" / "attacks.jsonl"
ATTACKS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]


class Structure(HTMLParser):
    """The elements of a page with their attributes, in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(text: str, answer: str) -> str:
    pair = QueryPair(text, text, answer, 0.2, 0.6, [text, "b"], ["b"], [text], [text, "b"])
    return render_report(
        ReportData(
            name=text,
            verdict="promote",
            reasons=[text],
            comparison=[Row(text, "paraphrased_retrieval", "ao@10", 1.0, 2.0, 1.0, 0.5, 1.5, 10, 10)],
            finetune="f",
            notes=[answer],
            better=[pair],
            worse=[pair],
            paraphrases=[ParaphraseSample(text, text, answer, answer, 0.9, None)],
            rejects=[RejectGroup("paraphrase_1", "echo", 1, [RejectSample(text, answer, answer)])],
            stages=[StageRow(text, "f", 1, 1, {text: text}, {text: answer}, {text: [answer]})],
            versions={text: answer},
            licenses=[License(text, 1, 1)],
            thumbnails={text: b"\xff\xd8"},
        )
    )


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["id"])
def test_no_attack_adds_an_element_or_an_attribute(attack: dict[str, Any]) -> None:
    text = attack["text"] * min(attack.get("repeat", 1), 50)
    harmless = Structure(page("a dog", "a puppy"))
    for shown in (text, clean(text)):
        made = page(shown, attack["obeyed"][0])
        assert Structure(made).elements == harmless.elements
        # What a browser of old would run without an element.
        assert not re.search(r"(?i)(?:href|src|style)\s*=\s*[\"']?\s*javascript:", made)
        assert "Content-Security-Policy" in made
