"""Licenses are named as the hub does, and no text of others comes alive in the card."""

from __future__ import annotations

from typing import Any

from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from paraclip_core.dataset_card import DatasetFacts, StepFacts, dataset_card, hub_licenses
from paraclip_core.paraphrase.prompts import PAPER


def test_names_on_the_hub() -> None:
    assert hub_licenses(["CC0-1.0", "CC BY-NC-SA 2.0"]) == ("cc-by-nc-sa-2.0", "cc0-1.0")
    assert hub_licenses(["Attribution License", "MIT"]) == ("other",)  # no version, so no identifier
    assert hub_licenses(["CC0-1.0", "unknown"]) == ("other",)
    assert hub_licenses(["unknown"]) == hub_licenses([]) == ("unknown",)


def facts(**changes: Any) -> DatasetFacts:
    step = StepFacts({"filters": {"preset": "small-model"}, "sampling": {"n": 1}}, {"engine": "vllm"}, PAPER[1])
    usual: dict[str, Any] = {
        "name": "name", "rows": 6, "columns": ["caption_id", "caption"], "ingest_options": {"max_words": 15},
        "ingest_metrics": {"read": 9, "accepted": 8, "rejected": {"duplicate": 1}}, "steps": (step, step),
        "samples": [{"caption_id": "0", "caption": "a dog"}], "licenses": {"MIT": 6}, "opt_outs": None,
        "fingerprints": {"ingest": "0"}, "versions": {"paraclip": "1"},
    }  # fmt: skip
    return DatasetFacts(**(usual | changes))


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


def shape(tokens: list[Token]) -> list[tuple[str, str]]:
    """What stands one below the other, but for the list of notes, which depends on the data."""
    return [(token.type, token.tag) for token in tokens if token.level == 0 and "list" not in token.type]


@settings(max_examples=20)
@given(st.text(), st.text(), st.dictionaries(st.text(), st.integers(1, 9), max_size=5))
def test_no_text_changes_the_card_around_it(name: str, caption: str, licenses: dict[str, int]) -> None:
    assert hub_licenses(list(licenses))
    samples = [{"caption_id": "0", "caption": caption}]
    card = DatasetCard(dataset_card(facts(name=name, samples=samples, licenses=licenses)))
    front: dict[str, Any] = card.data.to_dict()
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    plain = DatasetCard(dataset_card(facts(licenses={str(n): 1 for n in range(len(licenses))})))
    tokens = MARKDOWN.parse(card.text)
    assert shape(tokens) == shape(MARKDOWN.parse(plain.text))
    alive = {child.type for token in tokens for child in token.children or ()}
    assert alive <= {"text", "text_special", "code_inline", "strong_open", "strong_close", "softbreak"}


def test_opt_outs_whom_to_ask_and_a_column_of_licenses_that_is_none() -> None:
    assert "open a discussion on this data set's page" in dataset_card(facts())
    text = dataset_card(facts(opt_outs=(3, 7), contact="write to a@b.example"))
    assert "because of a list of 3 opt-outs: 7." in text and "removed: write to a@b.example." in text
    text = dataset_card(facts(licenses={f"caption number {n}": 2 + n % 3 for n in range(900)}))
    assert "And 850 more." in text and len(text) < 20_000
    assert len(DatasetCard(text).data.to_dict()["license_name"]) <= 100
