"""What a judge says of every candidate, beside the verdict that counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.judge import Candidate, Judge, Request

CAPTION = "a small dog on the beach"


class Letters:
    """Bag-of-letters vectors: similar texts are close, without a model."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.full((len(texts), 27), 1e-6, dtype=np.float32)
        for row, text in enumerate(texts):
            for char in text.lower():
                vectors[row, min(abs(ord(char) - ord("a")), 26)] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def explained(preset: str, answers: Sequence[str], **options: object) -> tuple[list[Candidate], list[str], str | None]:
    """Candidates, and the answers that the verdict accepts, or its reason."""
    gates = GateOptions.model_validate({"preset": preset, "min_similarity": 0.3, **options})
    judge = Judge(gates, 1, encoder=Letters())
    request = Request(CAPTION, CAPTION, answers)
    verdict = judge.judge([request])[0]
    return judge.explain([request])[0], [one.answer for one in verdict.accepted], verdict.reason


def failing(candidate: Candidate) -> list[str]:
    return [reason for reason, detail in candidate.results.items() if detail is not None]


def test_every_gate_is_asked_and_the_verdict_is_the_same() -> None:
    answers = [
        "A little dog is on the beach.",
        "I'm sorry, I cannot paraphrase <b>this</b> as it is so very long and says so many other things.",
        CAPTION,
        "zzz",
    ]
    candidates, accepted, _ = explained("capable", answers)
    assert [one.answer for one in candidates if one.accepted] == accepted == [answers[0]]
    gates = gates_of(GateOptions(preset="capable"))
    assert list(candidates[0].results) == [*gates.text, *gates.meaning]
    assert candidates[0].similarity is not None and candidates[0].similarity > 0.8
    # The first alone would be the verdict's reason.
    assert {"refusal_or_preamble", "character_set"} <= {*failing(candidates[1])}
    assert "echo" in failing(candidates[2]) and failing(candidates[3])


def test_the_reason_of_a_verdict_is_the_first_gate_that_fails() -> None:
    for preset in ("off", "capable", "small-model"):
        for answer in ("", "...", CAPTION, "zzz", "a red cat near a green car and a bus, a train and a plane"):
            candidates, accepted, reason = explained(preset, [answer])
            assert ([*failing(candidates[0])] or [None])[0] == reason
            assert [one.answer for one in candidates if one.accepted] == accepted


def test_of_nothing_no_gate_but_the_first_is_asked() -> None:
    candidates, accepted, reason = explained("small-model", ["", "!?"])
    assert [list(one.results) for one in candidates] == [["empty"], ["empty"]]
    assert (accepted, reason) == ([], "empty")
    assert explained("capable", [])[0] == []
