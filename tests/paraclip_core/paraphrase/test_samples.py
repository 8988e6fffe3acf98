"""The latest answers, for who watches."""

from __future__ import annotations

from paraclip_core.paraphrase.samples import LONGEST, Samples


def test_the_latest_come_first_and_no_more_than_wanted() -> None:
    samples = Samples(size=3)
    samples.answered([("a dog", "one dog"), ("a cat", "x" * 9999)])
    samples.judged([("a dog", "one dog", None, None), ("a cow", None, "empty", None), ("a hen", "no", "echo", "same")])
    assert samples.rows == [
        {"input": "a hen", "answer": "no", "outcome": "echo: same"},
        {"input": "a cow", "answer": "", "outcome": "empty"},
        {"input": "a dog", "answer": "one dog", "outcome": "kept"},
    ]
    samples.answered([("a cat", "x" * 9999)])
    assert samples.rows[0] == {"input": "a cat", "answer": "x" * LONGEST, "outcome": "not judged yet"}
    assert len(samples.rows) == 3
