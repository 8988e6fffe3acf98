"""The LLM judge: a language model with the last word on whether an accepted answer means the same as its caption.

Its questions are requests like any other: each has a key, its answer is cached, and it is paid for once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from paraclip_core.paraphrase.engines import Engine, SamplingOptions
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.prompts import PromptTemplate, neutralize
from paraclip_core.paraphrase.sending import Phase, RequestSender
from paraclip_core.tables import FILTER_RESULTS

REASON = "judge"
JUDGE_STEP = 3
"""The judge's step in the keys and rows of the cache; 1 and 2 are the paraphrase steps, 0 is for single words."""
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
    """A question about two texts, which a request holds as one text with a line break between them."""

    def messages(self, text: str) -> tuple[tuple[str, str], ...]:
        """The chat turns for a caption and an answer, which are neutralized and never interpreted."""
        caption, _, answer = text.rpartition("\n")
        caption, answer = (neutralize(part).replace('"', "'") for part in (caption, answer))
        return (*self.turns, ("user", f'{self.before}{caption}"\nSentence 2: "{answer}{self.after}'))


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
    for caption, answer, result in pairs:
        turns += [*plain.messages(f"{caption}\n{answer}"), ("assistant", result)]
    return PairTemplate("judge/1", tuple(turns), 'Sentence 1: "', _ASKED)


QUESTION = _question()
"""What the model is asked."""


def judge_sampling(sampling: SamplingOptions) -> SamplingOptions:
    """One answer per question, the most likely one."""
    return sampling.model_copy(update={"temperature": 0.0, "n": 1})


def judge_requests(model: str, sampling: SamplingOptions) -> RequestKeys:
    """The keys of the questions to a model, which both steps share."""
    canonical = sampling_json(judge_sampling(sampling))
    return RequestKeys(JUDGE_STEP, model, QUESTION.id, QUESTION.hash, canonical, seed=0, attempt=0)


def says_same(answer: str) -> bool | None:
    """What an answer says first, ignoring its thoughts; None if it says neither yes nor no."""
    match = _YES_OR_NO.search(_THOUGHTS.sub("", answer))
    return None if match is None else match.group().lower() == "yes"


@dataclass(frozen=True)
class LLMJudge:
    """A language model that decides on the answers that the filters accepted."""

    sender: RequestSender
    sampling: SamplingOptions

    @property
    def engine(self) -> Engine:
        return self.sender.engine

    def decide(
        self,
        filter_results: pa.RecordBatch,
        captions: Sequence[str],
        digest: bytes,
        keep: int,
        started: Callable[[int], Phase],
    ) -> pa.RecordBatch:
        """The model's filter results (`tables.FILTER_RESULTS`, under `digest`) in place of the filters' own.

        The accepted answers of a request are tried best first, until `keep` of them say the same as the caption.
        `started` is called with the number of questions to send, if any, and returns their phase.
        """
        request = judge_requests(self.engine.model, self.sampling)
        rows: list[dict[str, Any]] = filter_results.to_pylist()
        same: list[list[Any]] = [[] for _ in rows]
        refusals: dict[int, str] = {}
        for place in range(max((len(row["accepted"]) for row in rows), default=0)):
            questions = {
                number: f"{captions[number]}\n{' '.join(row['accepted'][place]['answer'].split())}"
                for number, row in enumerate(rows)
                if place < len(row["accepted"]) and len(same[number]) < keep
            }
            texts = list(dict.fromkeys(questions.values()))
            by_question = self.sender.answers(request, QUESTION, self.sampling, texts, started)
            for number, question in questions.items():
                answer = " ".join(by_question[question]).strip()
                if says_same(answer):
                    same[number].append(rows[number]["accepted"][place])
                else:
                    refusals.setdefault(number, answer[:SHOWN])
        for number, row in enumerate(rows):
            row["filters"] = digest
            if row["accepted"] and not same[number]:
                best = row["accepted"][0]
                detail = f"does it say the same as the caption? {self.engine.model}: {refusals[number]!r}"
                row |= {"reason": REASON, "detail": detail} | {name: best[name] for name in ("answer", "similarity")}
            row["accepted"] = same[number]
        return pa.RecordBatch.from_pylist(rows, schema=FILTER_RESULTS)
