"""A language model as the last gate: it is asked whether an accepted answer says the same as its caption.

Questions are requests like any other: a key of their own, answers in the cache, paid for once. The best answer of a
request is asked about first, and the next one only where that one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.engines.base import CheckedEngine, Engine
from paraclip_core.paraphrase.prompts import PromptTemplate, neutralize
from paraclip_core.paraphrase.requests import RequestKeys, sampling_json
from paraclip_core.tables import VERDICTS

Started = Callable[[int], Callable[[int], None]]
"""Told how many questions are to be answered; returns who is told how many more are."""
Answers = Callable[[RequestKeys, PromptTemplate, SamplingOptions, Sequence[str], Started], dict[str, Sequence[str]]]

REASON = "judge"
JUDGE_STEP = 3
"""In the keys and rows of the cache, where 1 and 2 are the steps of a paraphrase and 0 are single words."""
SHOWN = 60

_YES_OR_NO = re.compile(r"\b(yes|no)\b", re.I)
_THOUGHTS = re.compile(r"^.*</think(?:ing)?>", re.I | re.S)
_RULES = (
    "You compare two sentences about one photo. The second may leave out details, but it must not change or add a "
    "person, animal, thing, action, number, color or place. Answer Yes or No."
)
_ASKED = '"\nDoes sentence 2 say the same as sentence 1?'


@dataclass(frozen=True)
class PairTemplate(PromptTemplate):
    """A question about two texts, which stand in a request as one, a line break between them."""

    def messages(self, text: str) -> tuple[tuple[str, str], ...]:
        """The chat turns for a caption and an answer, which are neutralized and never interpreted."""
        caption, _, answer = text.rpartition("\n")
        one, two = (neutralize(part).replace('"', "'") for part in (caption, answer))
        return (*self.turns, ("user", f'{self.before}{one}"\nSentence 2: "{two}{self.after}'))


def _question() -> PairTemplate:
    pairs = (
        ("A man rides a brown horse on the beach .", "A guy on a brown horse at the seaside.", "Yes"),
        ("Two dogs play with a red ball .", "Two cats play with a red ball.", "No"),
        ("A woman in a black coat waits for the bus .", "A lady is waiting for a bus.", "Yes"),
        ("A boy jumps into a pool .", "A boy swims in a lake.", "No"),
        ("Three kids sit on a wooden bench .", "Three children are seated on a bench.", "Yes"),
        ("A cyclist wearing a white helmet rides up a hill .", "A cyclist wears a white hat.", "No"),
    )
    plain = PairTemplate("", (), 'Sentence 1: "', _ASKED)
    turns = [("system", _RULES)]
    for caption, answer, verdict in pairs:
        turns += [*plain.messages(f"{caption}\n{answer}"), ("assistant", verdict)]
    return PairTemplate("judge/1", tuple(turns), 'Sentence 1: "', _ASKED)


QUESTION = _question()
"""What the model is asked."""


def judge_requests(model: str, sampling: SamplingOptions) -> RequestKeys:
    """The keys of the questions to a model, which both steps share; it answers once, as it finds most likely."""
    drawn = sampling.model_copy(update={"temperature": 0.0, "n": 1})
    return RequestKeys(JUDGE_STEP, model, QUESTION.id, QUESTION.hash, sampling_json(drawn), seed=0, attempt=0)


def says_same(answer: str) -> bool | None:
    """What an answer says first, thoughts aside; None where it says neither yes nor no."""
    match = _YES_OR_NO.search(_THOUGHTS.sub("", answer))
    return None if match is None else match.group().lower() == "yes"


class ModelJudge:
    """Asks an engine about the answers that the other gates let pass."""

    def __init__(self, engine: Engine, answers: Answers, counts: Any, sampling: SamplingOptions, keep: int) -> None:
        """`answers` asks the engine and adds to `counts`, as :meth:`RequestSender.answers` does.

        `keep`: so many answers of a request are wanted; no more are asked about than that takes.
        """
        self.engine, self.counts = engine, counts
        self._ask, self._keep = answers, keep
        self._request = judge_requests(engine.model, sampling)
        self._sampling = sampling.model_copy(update={"temperature": 0.0, "n": 1})

    def judge(
        self, verdicts: pa.RecordBatch, captions: Sequence[str], gates: bytes, started: Started
    ) -> pa.RecordBatch:
        """Its verdicts (`tables.VERDICTS`) in place of those of the other gates, under the digest `gates`."""
        rows: list[dict[str, Any]] = verdicts.to_pylist()
        same: list[list[Any]] = [[] for _ in rows]
        refusals: dict[int, str] = {}
        for place in range(max((len(row["accepted"]) for row in rows), default=0)):
            # Of each row the next answer, as long as too few say the same.
            texts = {
                number: f"{captions[number]}\n{' '.join(row['accepted'][place]['answer'].split())}"
                for number, row in enumerate(rows)
                if place < len(row["accepted"]) and len(same[number]) < self._keep
            }
            answers = self._answers(list(dict.fromkeys(texts.values())), started)
            for number, text in texts.items():
                answer = " ".join(answers[text]).strip()
                if says_same(answer):
                    same[number].append(rows[number]["accepted"][place])
                else:
                    refusals.setdefault(number, answer[:SHOWN])
        for number, row in enumerate(rows):
            row["gates"] = gates
            if row["accepted"] and not same[number]:
                best = row["accepted"][0]
                detail = f"does it say the same as the caption? {self.engine.model}: {refusals[number]!r}"
                row |= {"reason": REASON, "detail": detail} | {name: best[name] for name in ("answer", "similarity")}
            row["accepted"] = same[number]
        return pa.RecordBatch.from_pylist(rows, schema=VERDICTS)

    def _answers(self, texts: list[str], started: Started) -> dict[str, Sequence[str]]:
        def checked(count: int) -> Callable[[int], None]:
            if isinstance(self.engine, CheckedEngine):
                self.engine.check()
            return started(count)

        return self._ask(self._request, QUESTION, self._sampling, texts, checked)
