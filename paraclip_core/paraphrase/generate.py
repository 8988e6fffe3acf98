"""The loop of one paraphrase step: look up, ask for what is missing, keep it, judge it, write rows and rejects.

Rows go through in blocks of a fixed size, so memory does not grow and nothing depends on how the input was cut or on
how many requests are in flight. What comes out is a function of the rows, their order and the cached generations.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.choose import Chooser, Request, Verdict
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.lexicon import stem, words
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for
from paraclip_core.paraphrase.protocol import Completion, Engine, GenerationCache, Prompt
from paraclip_core.paraphrase.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP, Synonyms, swapped
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import GENERATIONS, PARAPHRASE_REJECTS, PARAPHRASES

__all__ = ["BLOCK_ROWS", "INPUT_COLUMNS", "Counts", "Paraphraser", "blocks", "count_wanted", "in_fraction"]

log = logging.getLogger(__name__)

BLOCK_ROWS = 4096
"""Rows that are judged together. Part of what an output means: the flood gate sees rows in this order."""

SWAPS = {1: 2, 2: 3}
"""Words that are swapped for synonyms, at most, by step."""

INPUT_COLUMNS = {
    1: ("caption_id", "image_id", "caption", "caption_tokens", "licence"),
    2: (
        "caption_id", "image_id", "caption", "paraphrase_1", "caption_tokens", "paraphrase_1_tokens", "similarity_1",
        "licence", "generation_1",
    ),
}  # fmt: skip
"""Columns of the rows that each step reads: of the captions at step 1, of step 1's output at step 2."""

Tokens = Callable[[Sequence[str]], pa.Array]
Answers = dict[str, tuple[bytes, Sequence[str]]]
"""Text → key of its request and the raw answers."""


@dataclass
class Counts:
    """What a step did, for its manifest."""

    captions: int = 0
    """Rows that were to be paraphrased."""
    requested: int = 0
    """Different requests, all attempts together."""
    cached: int = 0
    generated: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejections by reason, one for each caption and attempt."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0

    def metrics(self) -> dict[str, Any]:
        """The counts as JSON-ready values."""
        values = dict(vars(self))
        values["rejected"] = {reason: self.rejected[reason] for reason in sorted(self.rejected)}
        values["engine_seconds"] = round(self.engine_seconds, 3)
        return values


def in_fraction(text: str, fraction: float) -> bool:
    """Whether a caption belongs to the share that is paraphrased; depends on its text alone."""
    if fraction >= 1:
        return True
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little") / 2**64 < fraction


def blocks(batches: Iterable[pa.RecordBatch], rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
    """The same rows in blocks of `rows`, the last one shorter, however the batches were cut."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            head = batch.slice(0, rows - count)
            batch = batch.slice(head.num_rows)
            waiting.append(head)
            count += head.num_rows
            if count == rows:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


class Paraphraser:
    """One step over any number of rows."""

    def __init__(
        self,
        step: int,
        options: ParaphraseOptions,
        engine: Engine,
        cache: GenerationCache,
        chooser: Chooser,
        tokens: Tokens,
        *,
        progress: Progress = silent,
        total: int | None = None,
        ask: bool = True,
    ) -> None:
        """Prepare step 1 or 2.

        Args:
            step: 1 or 2.
            options: the paraphrase options.
            engine: asked for what the cache does not know.
            cache: every generation that was ever paid for.
            chooser: the step's gates.
            tokens: texts → list<uint16> array of CLIP tokens.
            progress: called after every chunk.
            total: rows to come, for the progress.
            ask: False only looks: missing requests are collected in `missing` instead of being asked for.
        """
        self.step, self.options, self.engine, self.cache = step, options, engine, cache
        self.prompt = prompt_for(options, step)
        self.counts = Counts()
        self.missing: list[tuple[bytes, str]] = []
        """Key and text of the requests that were missing in the last block, where `ask` is False."""
        self.first_missing: list[tuple[bytes, str]] = []
        """Those of the last block's missing requests that are a first attempt."""
        self._chooser, self._tokens, self._progress = chooser, tokens, progress
        self._total, self._ask_engine = total, ask
        self._started = time.monotonic()
        self._seen_rows = 0

    def run(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Rows (`tables.PARAPHRASES`) and rejects (`tables.PARAPHRASE_REJECTS`), block by block, in input order.

        Args:
            batches: the columns `INPUT_COLUMNS[step]`.

        Raises:
            EngineError: the engine failed; every chunk before it is kept.
        """
        for block in blocks(_wanted(batches, self.options.fraction)):
            yield self._block(block)
            self._seen_rows += block.num_rows
            self._report(0)

    def _block(self, block: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        captions = block.column("caption").to_pylist()
        sources = captions if self.step == 1 else block.column("paraphrase_1").to_pylist()
        self.missing.clear()
        self.first_missing.clear()
        kept: dict[int, tuple[Verdict, bytes]] = {}
        rejects: list[tuple[int, int, Verdict, bytes]] = []
        pending = list(range(len(captions)))
        for attempt in range(self.options.attempts):
            if not pending:
                break
            answers = self._answers(self.prompt, list(dict.fromkeys(sources[row] for row in pending)), attempt)
            if attempt == 0:
                self.first_missing += self.missing
            told = {source: caption for caption, source in zip(reversed(captions), reversed(sources), strict=True)}
            answers = self._with_synonyms(answers, told)
            pending = [row for row in pending if sources[row] in answers]
            pairs = list(dict.fromkeys((captions[row], sources[row]) for row in pending))
            verdicts = dict(
                zip(pairs, self._chooser.choose([Request(c, s, answers[s][1]) for c, s in pairs]), strict=True)
            )
            left = []
            for row in pending:
                verdict, key = verdicts[captions[row], sources[row]], answers[sources[row]][0]
                if verdict.reason is None:
                    kept[row] = verdict, key
                else:
                    rejects.append((row, attempt, verdict, key))
                    left.append(row)
            pending = left
        self.counts.captions += len(captions)
        self.counts.accepted += len(kept)
        self.counts.rejected.update(str(verdict.reason) for _, _, verdict, _ in rejects)
        rejects.sort(key=lambda reject: reject[:2])
        return self._rows(block, kept), self._rejects(block, sources, rejects)

    def _with_synonyms(self, answers: Answers, captions: Mapping[str, str]) -> Answers:
        """Every text's answers and, behind them, answers (at step 2 the text, too) with single words swapped.

        `captions` has the (first) caption of each text: step 2 first tries to leave step 1's new words as they are.
        """
        chosen, encoder = self.options, self._chooser.encoder
        if not chosen.synonyms or not self.prompt.id.startswith("few-shot"):
            return answers
        if encoder is None or self.engine.name == "file":
            return answers

        def fetch(wanted: Sequence[str]) -> dict[str, Sequence[str]]:
            return {word: found for word, (_, found) in self._answers(THESAURUS, wanted, 0).items()}

        bases = {text: _swap_bases(text, found, self.step) for text, (_, found) in answers.items()}
        synonyms = Synonyms(fetch, encoder.encode, self._chooser.pieces)
        table = synonyms.table(base for some in bases.values() for base in some)
        extended: Answers = {}
        for text, (key, found) in answers.items():
            most = SWAPS[self.step]
            fresh = swapped(bases[text], _told(table, captions[text]), most) if self.step == 2 else []
            extended[text] = key, [*found, *dict.fromkeys([*fresh, *swapped(bases[text], table, most)])]
        return extended

    def _answers(self, prompt: PromptTemplate, texts: Sequence[str], attempt: int) -> Answers:
        """Text → (key, raw answers), from the cache or the engine."""
        sampling = WORD_SAMPLING if prompt is THESAURUS else self.options.sampling
        request = RequestKeys(
            self._step_of(prompt),
            self.engine.model,
            prompt.id,
            prompt.hash,
            sampling_json(sampling),
            self.options.seed,
            attempt,
        )
        array = request.keys(texts)
        keys: list[bytes] = array.to_pylist()
        known = self._lookup(array)
        answers = {text: (key, known[key]) for text, key in zip(texts, keys, strict=True) if key in known}
        todo = [(text, key) for text, key in zip(texts, keys, strict=True) if key not in known]
        self.counts.requested += len(texts)
        self.counts.cached += len(answers)
        if not self._ask_engine:
            self.missing += [(key, text) for text, key in todo]
            return answers
        for start in range(0, len(todo), self.options.chunk):
            chunk = todo[start : start + self.options.chunk]
            for (text, key), completion in zip(chunk, self._ask(prompt, sampling, chunk, attempt), strict=True):
                answers[text] = key, completion.texts
            if attempt == 0 and prompt is self.prompt:
                self._report((len(texts) - len(todo) + start + len(chunk)) / len(texts))
        return answers

    def _step_of(self, prompt: PromptTemplate) -> int:
        """Both steps share what is known about words."""
        return WORD_STEP if prompt is THESAURUS else self.step

    def _lookup(self, keys: pa.FixedSizeBinaryArray) -> dict[bytes, Sequence[str]]:
        found = self.cache.lookup(keys)
        return dict(zip(found.column("key").to_pylist(), found.column("completions").to_pylist(), strict=True))

    def _ask(
        self, template: PromptTemplate, sampling: SamplingOptions, chunk: Sequence[tuple[str, bytes]], attempt: int
    ) -> list[Completion]:
        options = self.options
        # Another attempt must draw other answers.
        seed = (options.seed + 7919 * attempt) % 2**31
        prompts = [Prompt(template.messages(text), text, self._step_of(template), seed) for text, _ in chunk]
        started = time.monotonic()
        completions = self.engine.generate(prompts, sampling)
        self.counts.engine_seconds += time.monotonic() - started
        if len(completions) != len(chunk):
            raise EngineError(f"{self.engine.name} gave {len(completions)} completions for {len(chunk)} prompts")
        # What is judged now is what a cached run will judge.
        completions = [replace(found, texts=tuple(map(_storable, found.texts))) for found in completions]
        self.cache.append(self._generations(template, sampling, chunk, completions, attempt))
        self.counts.generated += len(chunk)
        self.counts.prompt_tokens += sum(completion.prompt_tokens for completion in completions)
        self.counts.completion_tokens += sum(completion.completion_tokens for completion in completions)
        return completions

    def _generations(
        self,
        template: PromptTemplate,
        sampling: SamplingOptions,
        chunk: Sequence[tuple[str, bytes]],
        completions: Sequence[Completion],
        attempt: int,
    ) -> pa.Table:
        count = len(chunk)
        columns = {
            "key": [key for _, key in chunk],
            "step": [self._step_of(template)] * count,
            "attempt": [attempt] * count,
            "input": [_storable(text) for text, _ in chunk],
            "engine": [self.engine.name] * count,
            "model": [self.engine.model] * count,
            "prompt": [template.id] * count,
            "prompt_hash": [template.hash] * count,
            "sampling": [sampling_json(sampling)] * count,
            "seed": [self.options.seed] * count,
            "completions": [list(completion.texts) for completion in completions],
            "prompt_tokens": [completion.prompt_tokens for completion in completions],
            "completion_tokens": [completion.completion_tokens for completion in completions],
        }
        return pa.Table.from_pydict(columns, schema=GENERATIONS)

    def _rows(self, block: pa.RecordBatch, kept: dict[int, tuple[Verdict, bytes]]) -> pa.RecordBatch:
        order = sorted(kept)
        answers = [kept[row][0].answer or "" for row in order]
        base = block.take(pa.array(order, pa.int64()))
        columns: dict[str, Any] = {name: base.column(name) for name in INPUT_COLUMNS[self.step]}
        columns |= {
            f"paraphrase_{self.step}": pa.array(answers, pa.string()),
            f"paraphrase_{self.step}_tokens": self._tokens(answers),
            f"similarity_{self.step}": pa.array([kept[row][0].similarity for row in order], pa.float32()),
            f"generation_{self.step}": pa.array([kept[row][1] for row in order], pa.binary(16)),
        }
        arrays = [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(len(order), f.type) for f in PARAPHRASES
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=PARAPHRASES)

    def _rejects(
        self, block: pa.RecordBatch, sources: Sequence[str], rejects: Sequence[tuple[int, int, Verdict, bytes]]
    ) -> pa.RecordBatch:
        ids = block.column("caption_id")
        columns = {
            "caption_id": [ids[row].as_py() for row, _, _, _ in rejects],
            "step": [self.step] * len(rejects),
            "attempt": [attempt for _, attempt, _, _ in rejects],
            "reason": [verdict.reason for _, _, verdict, _ in rejects],
            "detail": [verdict.detail for _, _, verdict, _ in rejects],
            "input": [sources[row] for row, _, _, _ in rejects],
            "answer": [verdict.answer for _, _, verdict, _ in rejects],
            "generation": [key for _, _, _, key in rejects],
        }
        return pa.RecordBatch.from_pydict(columns, schema=PARAPHRASE_REJECTS)

    def _report(self, share: float) -> None:
        """Tell how far it is; `share` of the current block's requests are answered."""
        counts = self.counts
        block = min(BLOCK_ROWS, (self._total or BLOCK_ROWS) - self._seen_rows)
        seconds = max(time.monotonic() - self._started, 1e-6)
        judged = counts.accepted + sum(counts.rejected.values())
        facts: dict[str, float | int] = {
            "requests_per_second": round(counts.requested / seconds, 1),
            "generated": counts.generated,
            "cached": counts.cached,
        }
        if judged:
            facts["acceptance"] = round(counts.accepted / judged, 3)
        self._progress(self._seen_rows + int(share * max(block, 0)), self._total, **facts)


def _wanted(batches: Iterable[pa.RecordBatch], fraction: float) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if fraction < 1:
            batch = batch.filter(
                pa.array([in_fraction(text, fraction) for text in batch.column("caption").to_pylist()])
            )
        yield batch


def _told(table: Mapping[str, tuple[str, ...]], caption: str) -> dict[str, tuple[str, ...]]:
    """The part of the table for words that the caption holds."""
    known = {stem(word) for word in words(caption)}
    return {word: others for word, others in table.items() if stem(word) in known}


def _swap_bases(text: str, answers: Sequence[str], step: int) -> list[str]:
    """Texts that words are swapped in: two of the answers, and at step 2, where it is plain, the input itself."""
    found = [parsed for answer in answers if (parsed := parse_answer(answer))]
    bases: dict[str, None] = dict.fromkeys([text, *found] if step == 2 else found)
    return list(bases)[:2]


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates, which a model's byte tokens can give, become a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def count_wanted(batches: Iterable[pa.RecordBatch], fraction: float) -> int:
    """Rows that a step will look at."""
    return sum(batch.num_rows for batch in _wanted(batches, fraction))
