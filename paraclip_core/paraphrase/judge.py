"""Judge: a verdict on the answers to each request, from their texts and the gates alone, in several processes.

A verdict depends neither on what is judged beside it nor on the order. So how answers are cut into blocks
(`tables.ANSWERS`), and how many processes share them, changes no byte of the verdicts (`tables.VERDICTS`).

A language model may have the last word (:func:`decide_by_model`) on whether an accepted answer says the same as its
caption. Its questions are requests like any other: a key of their own, answers in the cache, paid for once.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions, meaning
from paraclip_core.demo.synonyms import Fetch, SynonymTable, find_synonyms, variants
from paraclip_core.errors import CrashedError, StageError
from paraclip_core.lifetime import die_with
from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.gates import extra_gates_source, first_failure, gates_of
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.pair import Pair, Pieces
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, neutralize
from paraclip_core.paraphrase.sentence_encoder import Compare, Encoder, SentenceEncoder, model_identity
from paraclip_core.tables import VERDICTS, text_hash

GATES_VERSION = "7d0b61f3a9c24e58b1f60c2d94a8e735"
"""Stands for the code of the package's own gates: change it where a verdict may change, and all are judged again."""
OVERLAP_WEIGHT = 0.3
GOOD_LENGTH = 1.3
BLOCK_ROWS = 512
IN_PROCESS_BLOCKS = 4
"""Starting processes, which load the sentence encoder, takes as long as judging so much."""
WHOLE_TEXT = 4096
"""Tokens that no text reaches."""
KILLED = (
    "a process that judges answers was killed; the machine may be out of memory (run.threads has fewer of them). "
    "Verdicts so far are kept; run again to go on from there"
)
CHANGED = "the code that judges was changed since this run began; run again to go on with it"

Judged = tuple[pa.RecordBatch, pa.RecordBatch]
"""A block and its verdicts, row by row."""


@dataclass(frozen=True)
class JudgeSpec:
    """Everything that a process needs to judge; plain data."""

    gates: GateOptions
    """With the preset resolved."""
    step: int
    examples: tuple[tuple[str, str], ...] = ()
    """The prompt's examples as (user, assistant)."""
    context_length: int = 77
    """Of the text tower."""
    words: str = ""
    """Model, seed and prompt of the requests for single words; empty where no answers with swapped words are tried."""
    model_judge: str = ""
    """Model, prompt and sampling of the language model that has the last word; empty where none has."""

    @property
    def last_digest(self) -> bytes:
        """16 bytes over all that decides a row's last verdict: :attr:`digest`, and the language model."""
        if not self.model_judge:
            return self.digest
        return hashlib.blake2b(self.digest + self.model_judge.encode(), digest_size=16).digest()

    @property
    def digest(self) -> bytes:
        """16 bytes over all that decides a verdict besides the texts: options, models, step, examples and code."""
        decides = {
            "options": meaning(self.gates),
            "step": self.step,
            "examples": list(map(list, self.examples)),
            "context": self.context_length,
            "synonyms": self.words,
            "encoder": model_identity(self.gates.encoder) if gates_of(self.gates).meaning else "",
            "code": GATES_VERSION,
        }
        digest = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=16)
        for source in extra_gates_source(self.gates).values():
            digest.update(hashlib.blake2b(source, digest_size=16).digest())
        return digest.digest()


@dataclass(frozen=True)
class Request:
    """A caption and the text that was to be paraphrased, with the raw answers."""

    caption: str
    source: str
    """The caption at step 1, paraphrase 1 at step 2."""
    answers: Sequence[str]


@dataclass(frozen=True)
class Candidate:
    """A parsed answer with what each gate says of it."""

    answer: str
    results: Mapping[str, str | None]
    """Reason code → None where it passes, or why it does not, in the order of the gates. An answer without a word
    goes to no other gate."""
    similarity: float | None
    """Cosine of caption and answer, None without a sentence encoder."""

    @property
    def accepted(self) -> bool:
        return all(detail is None for detail in self.results.values())


@dataclass(frozen=True)
class Verdict:
    """The answers that passed, or why none did."""

    accepted: tuple[tuple[str, float | None], ...] = ()
    """Parsed answers, best first, each with its cosine with the caption (None without a sentence encoder)."""
    answer: str | None = None
    """Where none passed: the parsed answer that came furthest; None where there was none."""
    reason: str | None = None
    """Code of the gate that stopped it, None where an answer passed."""
    detail: str = ""
    similarity: float | None = None
    """Cosine of caption and rejected answer, None where it was not computed."""


@dataclass
class _Judged:
    """A candidate that passed so far, or was stopped."""

    pair: Pair
    reason: str | None = None
    detail: str = ""
    similarity: float | None = None
    score: tuple[bool, float] = (True, 0.0)


class Judge:
    """Applies the gates of one step."""

    def __init__(self, spec: JudgeSpec, encoder: Encoder | None = None, pieces: Pieces | None = None) -> None:
        """Judge with these models; :meth:`with_models` takes those that the options name.

        Without `encoder` all answers pass the gates on meaning, and none is better than another; without `pieces` they
        pass those on CLIP tokens.
        """
        self._spec, self._options, self._gates = spec, spec.gates, gates_of(spec.gates)
        self._tokenizer = Tokenizer(spec.context_length)
        self.encoder, self.pieces = encoder, pieces
        self.synonyms: SynonymTable | None = None
        """Word → other words, with which further answers are made; None: none are."""

    @classmethod
    def with_models(cls, spec: JudgeSpec) -> Judge:
        """A judge with the models that the options name, which the first answer loads."""
        options, whole = spec.gates, Tokenizer(context_length=WHOLE_TEXT)
        device = "cpu" if options.device == "auto" else options.device
        return cls(
            spec,
            SentenceEncoder(options.encoder, device) if gates_of(options).meaning else None,
            lambda text: len(whole.encode(text)) - 2,
        )

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for each request, in order.

        Of the answers that pass, those of at most 1.3 times the input's words and one come first, each by the lower
        cosine (with input and caption) − 0.3 · overlap of the content words. The preset `off` leaves them in their
        order.
        """
        judged = [[self._by_texts(pair) for pair in self._candidates(request)] for request in requests]
        passed = [one for some in judged for one in some if one.reason is None]
        if (compare := self._comparing([one.pair for one in passed])) is not None:
            for one in passed:
                self._by_meaning(one, compare)
        return [self._verdict(some) for some in judged]

    def judge_block(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Verdicts (`tables.VERDICTS`) of a block (`tables.ANSWERS`), in its order."""
        rows = [
            {
                "generation": generation,
                "parent": parent,
                "gates": self._digest,
                "accepted": [
                    {"answer": text, "tokens": self._tokenizer.encode(text), "similarity": similarity}
                    for text, similarity in verdict.accepted
                ],
                "answer": verdict.answer,
                "reason": verdict.reason,
                "detail": verdict.detail,
                "similarity": verdict.similarity,
            }
            for generation, parent, verdict in zip(
                block.column("generation").to_pylist(),
                block.column("parent").to_pylist(),
                self.judge(_requests(block)),
                strict=True,
            )
        ]
        return pa.RecordBatch.from_pylist(rows, schema=VERDICTS)

    def explain(self, requests: Sequence[Request]) -> list[list[Candidate]]:
        """Every candidate of each request, in the order in which they are judged, with the result of every gate."""
        candidates = [self._candidates(request) for request in requests]
        compare = self._comparing([pair for pairs in candidates for pair in pairs if pair.answer_words])
        return [[self._explained(pair, compare) for pair in pairs] for pairs in candidates]

    def _explained(self, pair: Pair, compare: Compare | None) -> Candidate:
        if detail := self._gates.text["empty"](pair, self._options):
            return Candidate(pair.answer, {"empty": detail}, None)
        results = {reason: gate(pair, self._options) for reason, gate in self._gates.text.items()}
        if compare is None:
            return Candidate(pair.answer, results, None)
        results |= {reason: gate(pair, self._options, compare) for reason, gate in self._gates.meaning.items()}
        return Candidate(pair.answer, results, compare.cosine(pair.caption, pair.answer))

    @cached_property
    def _digest(self) -> bytes:
        return self._spec.digest

    def _candidates(self, request: Request) -> list[Pair]:
        """The parsed answers, each once, and behind them those with words swapped."""
        spec, raw = self._spec, list(request.answers)
        if self.synonyms is not None:
            raw += variants(request.source, request.caption, raw, spec.step, self.synonyms)
        pair = Pair(request.caption, request.source, "", spec.step, spec.examples, self.pieces, spec.context_length)
        return [replace(pair, answer=answer) for answer in dict.fromkeys(map(parse_answer, raw))]

    def _comparing(self, pairs: Sequence[Pair]) -> Compare | None:
        """What compares the texts of these pairs, all of them prepared at once; None without an encoder."""
        if self.encoder is None or not self._gates.meaning:
            return None
        compare = Compare(self.encoder)
        compare.prepare(text for pair in pairs for text in self._gates.compared(pair))
        return compare

    def _by_texts(self, pair: Pair) -> _Judged:
        failure = first_failure(pair, self._options, self._gates)
        return _Judged(pair) if failure is None else _Judged(pair, *failure)

    def _by_meaning(self, one: _Judged, compare: Compare) -> None:
        """Stop a candidate that passed the gates on texts, or score it."""
        pair = one.pair
        one.similarity = compare.cosine(pair.caption, pair.answer)
        for reason, gate in self._gates.meaning.items():
            detail = gate(pair, self._options, compare)
            if detail is not None:
                one.reason, one.detail = reason, detail
                return
        if self._options.preset != "off":
            short = len(pair.answer_words) <= GOOD_LENGTH * len(pair.source_words) + 1
            nearness = min(compare.cosine(pair.source, pair.answer), one.similarity)
            one.score = (short, nearness - OVERLAP_WEIGHT * pair.content_overlap)

    def _verdict(self, judged: Sequence[_Judged]) -> Verdict:
        if not judged:
            return Verdict((), None, "no_paraphrase", "the engine has none for this text")
        passed = sorted((one for one in judged if one.reason is None), key=lambda one: one.score, reverse=True)
        if passed:
            return Verdict(tuple((one.pair.answer, one.similarity) for one in passed))
        # The answer that came furthest says most about what to change; max takes the first of equals.
        furthest = max(judged, key=lambda one: self._gates.rank(one.reason or ""))
        return Verdict((), furthest.pair.answer, furthest.reason, furthest.detail, furthest.similarity)


def _requests(block: pa.RecordBatch) -> list[Request]:
    return list(map(Request, *(block.column(name).to_pylist() for name in ("caption", "source", "completions"))))


class JudgePool:
    """Processes that judge, started when there is enough for them; close it at the end."""

    def __init__(self, spec: JudgeSpec, processes: int = 0, scratch: Path | None = None) -> None:
        """`processes` judge at once, 0: one for each core; `scratch` is a folder for tables of synonyms."""
        self._spec, self._scratch = spec, scratch
        self._processes = processes or os.cpu_count() or 1
        # One for each process, in turn: where one of several dies while another is being started, CPython 3.11 waits
        # for the other one for ever.
        self._pools: deque[ProcessPoolExecutor] = deque()
        self._synonyms = ""  # file with the table
        self._waiting: deque[tuple[pa.RecordBatch, Future[pa.RecordBatch]]] = deque()

    def find_synonyms(self, fetch: Fetch, texts: Iterable[str]) -> None:
        """From now on, also try answers with words swapped: those that `fetch` finds for the words of the texts."""
        judge = self._judge_here
        assert self._scratch is not None and judge.encoder is not None
        judge.synonyms = find_synonyms(texts, fetch, judge.encoder.encode, judge.pieces)
        text = json.dumps(judge.synonyms, sort_keys=True)
        path = self._scratch / f"synonyms-{text_hash(text).hex()}.json"
        path.write_text(text)
        self._synonyms = str(path)

    def judge(self, blocks: Iterable[pa.RecordBatch], rows: int) -> Iterator[Judged]:
        """Blocks (`tables.ANSWERS`) with their verdicts, in the order of the blocks; `rows` rows together."""
        if not self._pools and (self._processes == 1 or rows <= IN_PROCESS_BLOCKS * BLOCK_ROWS):
            yield from ((block, self._judge_here.judge_block(block)) for block in blocks)
            return
        for block in blocks:
            self._submit(block)
            if len(self._waiting) > 2 * self._processes:
                yield self._next()
        yield from self.offered(wait=True)

    def explain(self, block: pa.RecordBatch) -> list[list[Candidate]]:
        return self._judge_here.explain(_requests(block))

    def offer(self, block: pa.RecordBatch) -> bool:
        """Let a process judge a block while the caller does something else, if one has time for it."""
        if self._processes == 1 or len(self._waiting) > 2 * self._processes:
            return False
        self._submit(block)
        return True

    def offered(self, wait: bool = False) -> Iterator[Judged]:
        """Offered blocks with their verdicts, those that are judged; `wait`: all of them."""
        while self._waiting and (wait or self._waiting[0][1].done()):
            yield self._next()

    def close(self) -> None:
        """End the processes; what they are judging is given up."""
        while self._pools:
            self._pools.pop().shutdown(cancel_futures=True)

    @cached_property
    def _judge_here(self) -> Judge:
        return Judge.with_models(self._spec)

    def _submit(self, block: pa.RecordBatch) -> None:
        if not self._pools:
            # Not forked: threads of torch and Arrow do not survive that.
            context = multiprocessing.get_context("spawn")
            initargs = os.getpid(), self._spec, self._spec.digest
            self._pools.extend(ProcessPoolExecutor(1, context, _start_worker, initargs) for _ in range(self._processes))
        try:
            self._waiting.append((block, self._pools[0].submit(_judge_block, block, self._synonyms)))
        except BrokenProcessPool as error:
            raise CrashedError(KILLED) from error
        self._pools.rotate(-1)

    def _next(self) -> Judged:
        block, future = self._waiting.popleft()
        try:
            return block, future.result()
        except BrokenProcessPool as error:
            raise CrashedError(KILLED) from error


# What a judging process works with.
_spec: JudgeSpec
_digest: bytes
_judge: Judge | None = None
_synonyms = ""


def _start_worker(parent: int, spec: JudgeSpec, digest: bytes) -> None:
    """Make a judging process ready: it ends with its parent and leaves the other cores to its siblings."""
    global _spec, _digest
    die_with(parent)
    if gates_of(spec.gates).meaning:
        import torch

        torch.set_num_threads(1)
    _spec, _digest = spec, digest


def _judge_block(block: pa.RecordBatch, synonyms: str) -> pa.RecordBatch:
    """Verdicts of a block, with the table of synonyms in the file `synonyms`, where there is one."""
    global _judge, _synonyms
    if _judge is None:
        if _spec.digest != _digest:
            # This process has read the code anew, and its verdicts would not be those that the parent looks for.
            raise StageError(CHANGED)
        _judge = Judge.with_models(_spec)
    if synonyms != _synonyms:
        table = json.loads(Path(synonyms).read_text())
        _judge.synonyms = {word: tuple(others) for word, others in table.items()}
        _synonyms = synonyms
    return _judge.judge_block(block)


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


def judge_sampling(sampling: SamplingOptions) -> SamplingOptions:
    """One answer to each question, the most likely one."""
    return sampling.model_copy(update={"temperature": 0.0, "n": 1})


def judge_requests(model: str, sampling: SamplingOptions) -> RequestKeys:
    """The keys of the questions to a model, which both steps share."""
    canonical = sampling_json(judge_sampling(sampling))
    return RequestKeys(JUDGE_STEP, model, QUESTION.id, QUESTION.hash, canonical, seed=0, attempt=0)


def says_same(answer: str) -> bool | None:
    """What an answer says first, thoughts aside; None where it says neither yes nor no."""
    match = _YES_OR_NO.search(_THOUGHTS.sub("", answer))
    return None if match is None else match.group().lower() == "yes"


def decide_by_model(
    verdicts: pa.RecordBatch,
    captions: Sequence[str],
    digest: bytes,
    model: str,
    keep: int,
    answers: Callable[[Sequence[str]], Mapping[str, Sequence[str]]],
) -> pa.RecordBatch:
    """A model's verdicts (`tables.VERDICTS`, under `digest`) in place of those of the gates.

    `answers` gets different questions, and gives the answers to each. Of a request the accepted answers are tried best
    first, until `keep` of them say the same as the caption.
    """
    rows: list[dict[str, Any]] = verdicts.to_pylist()
    same: list[list[Any]] = [[] for _ in rows]
    refusals: dict[int, str] = {}
    for place in range(max((len(row["accepted"]) for row in rows), default=0)):
        questions = {
            number: f"{captions[number]}\n{' '.join(row['accepted'][place]['answer'].split())}"
            for number, row in enumerate(rows)
            if place < len(row["accepted"]) and len(same[number]) < keep
        }
        by_question = answers(list(dict.fromkeys(questions.values())))
        for number, question in questions.items():
            answer = " ".join(by_question[question]).strip()
            if says_same(answer):
                same[number].append(rows[number]["accepted"][place])
            else:
                refusals.setdefault(number, answer[:SHOWN])
    for number, row in enumerate(rows):
        row["gates"] = digest
        if row["accepted"] and not same[number]:
            best = row["accepted"][0]
            detail = f"does it say the same as the caption? {model}: {refusals[number]!r}"
            row |= {"reason": REASON, "detail": detail} | {name: best[name] for name in ("answer", "similarity")}
        row["accepted"] = same[number]
    return pa.RecordBatch.from_pylist(rows, schema=VERDICTS)
