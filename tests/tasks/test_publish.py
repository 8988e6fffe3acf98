"""What the UI is given to show."""

from __future__ import annotations

from typing import Any

from tasks.publish import artifact_key, as_text


def test_captions_are_no_markdown() -> None:
    row: dict[str, Any] = {
        "caption": "![x](http://elsewhere/x.png) <img src=x onerror=y> a *dog* on www.elsewhere",
        "base ao@10": 12.5,
        "nothing": None,
    }
    shown = as_text(row)
    assert shown["caption"] == (
        r"\!\[x\](http\://elsewhere/x\.png) \<img src\=x onerror\=y\> a \*dog\* on www\.elsewhere"
    )
    assert (shown["base ao@10"], shown["nothing"]) == (12.5, None)
    assert as_text({"caption": "a dog, on a beach"}) == {"caption": "a dog, on a beach"}


def test_keys_are_what_prefect_takes() -> None:
    assert artifact_key("My run", "worst-pairs") == "my-run-worst-pairs"
    assert artifact_key("…") == "paraclip"
