"""Hostile captions: none changes a prompt, none is kept once a model obeys it, and none acts anywhere else."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.captions.clean import clean
from paraclip_core.demo.smollm2 import chatml
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filtering import AnswerFilter, FilterSpec, Request
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, PromptTemplate
from paraclip_core.paraphrase.sentence_encoder import PACKAGE

DATA = Path(__file__).parents[2] / "data" / "attacks.jsonl"
ATTACKS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
TEXTS = {attack["id"]: attack["text"] * attack.get("repeat", 1) for attack in ATTACKS}
IN_ENGLISH = [attack for attack in ATTACKS if attack["language"] == "en"]
SECRET = "sk-proj-4f9a2c7d1e"
# What templates of other families, which a served model may use, begin and end turns with.
FOREIGN = re.compile(r"<[|/A-Za-z_]|\[/?[A-Z_]+\]|<<SYS>>|<｜|｜>")


def check_structure(template: PromptTemplate, text: str) -> None:
    """The text changes nothing of a prompt but the place that is left for it."""
    harmless, messages = template.messages("a dog"), template.messages(text)
    assert [role for role, _ in messages] == [role for role, _ in harmless]
    assert messages[:-1] == harmless[:-1]
    content = messages[-1][1]
    assert content.startswith(template.before) and content.endswith(template.after)
    inside = content[len(template.before) : len(content) - len(template.after)]
    assert not FOREIGN.search(inside), inside[:200]
    assert not [c for c in inside if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")]
    assert not (template.quoted and '"' in inside)
    for token in ("<|im_start|>", "<|im_end|>", "\n"):
        assert chatml(messages).count(token) == chatml(harmless).count(token)


TEMPLATES = pytest.mark.parametrize("template", [*PAPER.values(), *FEW_SHOT.values()], ids=lambda template: template.id)


@TEMPLATES
@given(st.text(max_size=60) | st.text(alphabet="<|>im_startend/[]INST \n{}\"'", max_size=60))
def test_no_text_changes_a_prompts_structure(template: PromptTemplate, text: str) -> None:
    check_structure(template, text)


@TEMPLATES
def test_no_attack_changes_a_prompts_structure(template: PromptTemplate) -> None:
    # Captions are cleaned at ingest, which unescapes entities; other texts come as they are.
    for text in (*TEXTS.values(), *map(clean, TEXTS.values())):
        check_structure(template, text)


def obedient(attack: dict[str, Any]) -> list[str]:
    """What a model says that does as it is told: the attack's aim, a secret, or the attack itself."""
    text = TEXTS[attack["id"]]
    return [*attack["obeyed"], SECRET, f"The key is {SECRET}", text, clean(text), f"Sure! {text}"]


def accepted_answers(judge: AnswerFilter, attacks: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    requests = [
        (attack["id"], Request(caption, caption, [answer]))
        for attack in attacks
        for caption in [clean(TEXTS[attack["id"]])[:2000]]
        for answer in obedient(attack)
    ]
    filter_results = judge.filter([request for _, request in requests])
    return [
        (name, result.accepted[0][0])
        for (name, _), result in zip(requests, filter_results, strict=True)
        if result.accepted
    ]


# What a capable model may pass on of a caption that is no description at all: a piece of its code or of its noise.
PIECES = ("sql", "html", "markdown", "format", "chat-template", "ansi", "zero-width", "bidi", "homoglyph", "path")


@pytest.mark.parametrize(("step", "share"), [(1, 0.97), pytest.param(2, 0.95, marks=pytest.mark.nightly)])
def test_hardly_any_obedient_answer_is_kept_of_a_capable_model(step: int, share: float) -> None:
    pytest.importorskip(PACKAGE)
    judge = AnswerFilter(FilterSpec(FilterOptions(preset="capable"), step))
    # The words that give an order, as the encoder, are English.
    accepted, answers = accepted_answers(judge, IN_ENGLISH), sum(len(obedient(attack)) for attack in IN_ENGLISH)
    assert len(accepted) <= (1 - share) * answers
    assert not [answer for _, answer in accepted if "HACKED" in answer.split() or SECRET in answer]
    orders = [name for name, _ in accepted if not name.startswith(PIECES)]
    assert len(orders) <= 0.02 * answers, orders
