"""What the UI is given to show."""

from __future__ import annotations

from typing import Any

from paraclip.flows.prefect_ui import artifact_key, as_text


def test_captions_are_no_markdown() -> None:
    row: dict[str, Any] = {
        "caption": "![x](http://elsewhere/x.png) <img src=x onerror=y> a *dog* on www.elsewhere",
        "base ao@10": 12.5,
        "nothing": None,
    }
    shown = as_text(row)
    assert shown["caption"] == r"!\[x\](http\://elsewhere/x.png) \<img src=x onerror=y\> a \*dog\* on www\.elsewhere"
    assert (shown["base ao@10"], shown["nothing"]) == (12.5, None)
    for text, escaped in {
        "me@home.example": r"me\@home.example",
        "_so_ __so__": r"\_so\_ \_\_so\_\_",
        "AT&amp;T &#64;": r"AT\&amp;T \&#64;",
        "~~gone~~ `rm` C:\\x": r"\~\~gone\~\~ \`rm\` C:\\x",
        "# one\n- two": "\\# one\n\\- two",
    }.items():
        assert as_text({"caption": text}) == {"caption": escaped}


def test_ordinary_texts_have_no_backslashes() -> None:
    for text in ("A dog, on a beach.", "1000268201_693b08cb0e.jpg", "R&B at 3:15 - 50% off!", "a | b {c} = d + e #1"):
        assert as_text({"caption": text}) == {"caption": text}


def test_counts_are_text() -> None:
    row = {"stage": "ingest", "rejected": 3, "reasons": {"empty": 2, "echo": 1}}
    assert as_text(row) == {"stage": "ingest", "rejected": 3, "reasons": "empty 2, echo 1"}
    assert as_text({"reasons": {}}) == {"reasons": ""}


def test_keys_are_what_prefect_takes() -> None:
    assert artifact_key("My run", "worst-pairs") == "my-run-worst-pairs"
    assert artifact_key("…") == "paraclip"
