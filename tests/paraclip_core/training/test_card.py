"""Model cards: what they say, and that the hub's own library reads them."""

from __future__ import annotations

import html
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from paraclip_core.evaluation.churn import Churn, Relevance
from paraclip_core.evaluation.thresholds import Spread, Threshold
from paraclip_core.training.card import completed_card, release_card

ROW = {"benchmark": "paraphrased_queries", "kind": "paraphrased_retrieval", "metric": "ao@10"}
ROW |= {"n": 750, "clusters": 750, "base": 11.8196, "tuned": 14.0189, "delta": 2.1993, "low": 1.2342, "high": 3.2074}
COMPARISON: dict[str, Any] = {
    "rows": [ROW, {**ROW, "metric": "js@10"}, {**ROW, "benchmark": "sts-b", "kind": "sts", "metric": "spearman"}],
    "verdict": "promote",
    "reason": "ao@10 +2.20 is clear of zero",
    "confidence": 0.95,
}


def card(**changes: Any) -> str:
    settings: dict[str, Any] = {
        "title": "A model",
        "summary": "Tuned.",
        "base": "ViT-B-32:laion2b_s34b_b79k",
        "image_encoder_hash": "ab" * 16,
        "licenses": {"CC BY 4.0": 3, 'evil"\n---\nlicense: mit | <b>': 1},
        "sources": {"made": 4},
        "options": {"epochs": 2.0},
        "figures": [{"alpha": 0.0, "ao@10": 29.0}, {"alpha": 1.0, "ao@10": 31.5}],
    }
    return release_card(**{**settings, **changes})


def test_the_hubs_library_reads_it() -> None:
    text = card(base_model="laion/CLIP-ViT-B-32-laion2B-s34B-b79K", revision="1a25a446")
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "other" and data["library_name"] == "open_clip"
    assert data["base_model"] == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert data["license_name"] == 'CC BY 4.0, evil" --- license: mit | <b>'
    assert "at revision `1a25a446`" in text and "`abab" in text and "local-dir:" in text
    assert "<b>" not in text.partition("\n---\n")[2] and "| 1 | 31.5 |" in text
    assert "Paraphrases: engine `openvino`, model `x`." in card(paraphraser="engine `openvino`, model `x`")
    assert "Paraphrases" not in text


def test_no_name_out_of_a_data_file_comes_alive() -> None:
    names = ("![x](https://a.example/b.png)", "[click](javascript:x)", "a\\|b", "*bold*", "https://a.example")
    body = card(licenses=dict.fromkeys(names, 1), sources=dict.fromkeys(names, 2)).partition("\n---\n")[2]
    shown = MarkdownIt("gfm-like", {"linkify": False}).render(body)
    for name in names:
        assert shown.count(f"<td>{html.escape(name)}</td>") == 2, name
    assert "<img" not in shown and "<a " not in shown and "<em>" not in shown
    usual = {"CC-BY-4.0": 1, "unknown": 2}
    assert "| CC-BY-4.0 | 1 |\n| unknown | 2 |" in card(licenses=usual)


def test_the_evaluation_becomes_the_hubs_model_index() -> None:
    text = completed_card(card(), name="paraclip-1234", comparison=COMPARISON)
    read: Any = ModelCard(text).data
    results = read.eval_results
    assert results is not None and read.model_name == "paraclip-1234"
    entries = [(result.task_type, result.dataset_name, result.metric_type, result.metric_value) for result in results]
    assert entries == [
        ("image-text-retrieval", "paraphrased_queries", "ao@10", 14.02),
        ("image-text-retrieval", "paraphrased_queries", "js@10", 14.02),
        ("sentence-similarity", "sts-b", "spearman", 14.02),
    ]
    assert "| paraphrased_queries | ao@10 ↑ | 750 | 11.82 | 14.02 | +2.20 [+1.23, +3.21] |" in text
    assert "Verdict: promote" in text and text.startswith("---\n") and text.count("\n---\n") == 1
    assert completed_card(card()) == card(), "nothing known, nothing added"
    assert completed_card("# Mine\n").endswith("# Mine\n"), "a card of unknown origin is kept"


def test_one_line_for_those_who_replace_the_base() -> None:
    spread = Spread([0.3] * 5, [0.1] * 5)
    rows = [Threshold(0.2, 0.21, 9.0, 9.5), Threshold(0.25, 0.31, 4.0, 7.0)]
    known = Relevance(2900, 120, 80, 50, 40)
    shares = [0.0] * 6 + [100.0] + [0.0] * 4
    churn = Churn(3000, 1000, 10, 60.0, shares, 24.0, known, [], {"base": spread, "tuned": spread}, rows)
    text = completed_card(card(), comparison=COMPARISON, churn=churn)
    (line,) = [line for line in text.splitlines() if "the same query" in line]
    assert line.startswith(
        "Against the base, over 3,000 queries and 1,000 images: For the same query, 6.0 of the first"
    )
    assert "24 of 100 queries show another first image" in line
    assert line.endswith("Thresholds on the cosine change: 0.25 becomes 0.31 if as many images should pass.")


def test_it_says_which_figures_are_better_when_lower() -> None:
    row = {**COMPARISON["rows"][0], "kind": "sugarcrepe", "metric": "text_only_closeness"}
    text = completed_card(card(), comparison={**COMPARISON, "rows": [*COMPARISON["rows"], row]})
    assert "| text_only_closeness ↓, lower is better | 750 |" in text and "ao@10 ↑ |" in text
    assert text.count("lower is better") == 1


@pytest.mark.parametrize(
    ("layout", "library", "call"),
    [("hf", "transformers", "AutoModel.from_pretrained"), ("onnx", "onnx", "onnxruntime.InferenceSession")],
)
def test_other_layouts_say_how_they_are_loaded(layout: str, library: str, call: str) -> None:
    text = completed_card(card(), layout=layout)
    assert ModelCard(text).data.to_dict()["library_name"] == library
    assert call in text and "open_clip.create_model" not in text
    # A release that is exported again says how it is loaded now.
    assert completed_card(text) == card() and completed_card(text, layout="hf") == completed_card(card(), layout="hf")
