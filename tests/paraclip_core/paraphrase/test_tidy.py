"""A web caption loses what says nothing about an image, and nothing else."""

from __future__ import annotations

import pytest

from paraclip_core.paraphrase.tidy import tidy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photo of a cat.jpg", "photo of a cat"),
        ("IMG_6631 orange tree next to green bus", "orange tree next to green bus"),
        ("A LARGE DOG NEXT TO A BAG", "a large dog next to a bag"),
        ("A Large Dog Next To A Bag!!", "a large dog next to a bag!"),
        ("a dog <b>runs</b> http://x.y/z.html", "a dog runs"),
        ("Two dogs run.", "Two dogs run."),
        ("#12", "#12"),
        ("", ""),
    ],
)
def test_tidy(text: str, expected: str) -> None:
    assert tidy(text) == expected
