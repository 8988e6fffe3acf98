"""The loop of one paraphrase step: look up, ask for what is missing, keep it, judge it, write rows and rejects.

Rows go through in blocks of a fixed size, so memory does not grow and nothing depends on how the input was cut or on
how many requests are in flight. What comes out is a function of the rows, their order and the cached generations.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, islice
from operator import itemgetter

import pyarrow as pa

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.paraphrase.ahead import LookAhead
from paraclip_core.paraphrase.asking import Asker, Part
from paraclip_core.paraphrase.block import BlockState, Tokens, paraphrase_rows
from paraclip_core.paraphrase.choose import Chooser, Request
from paraclip_core.paraphrase.conditions import conditions_of
from paraclip_core.paraphrase.counts import Counts
from paraclip_core.paraphrase.intake import blocks, wanted
from paraclip_core.paraphrase.judged import Judgement, Judgements
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.meanwhile import Meanwhile
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for, swaps_words
from paraclip_core.paraphrase.protocol import Engine, GenerationCache
from paraclip_core.paraphrase.reporting import Reporter
from paraclip_core.paraphrase.samples import Samples
from paraclip_core.paraphrase.swaps import Answers, with_swaps
from paraclip_core.paraphrase.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP, Synonyms
from paraclip_core.progress import Progress, silent

__all__ = ["Paraphraser"]

AHEAD_BLOCKS = 16
"""Blocks that the cache is asked about at once."""

SAME_CORES = frozenset({"file", "smollm2", "transformers"})
"""Engines that compute on the cores that the gates take: nothing is gained by both at once."""


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
        judged: Judgements | None = None,
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
            judged: what became of blocks in earlier passes with the same meaning; those are not judged again.
        """
        self.step, self.options, self.engine, self.cache = step, options, engine, cache
        self.prompt = prompt_for(options, step)
        self.counts = Counts()
        self.samples = Samples()
        """The latest answers, for who watches."""
        self._known = LookAhead(cache)
        self._asker = Asker(engine, cache, self.counts, options.seed, options.chunk)
        self.missing: list[tuple[bytes, str]] = []
        """Key and text of the requests that were missing in the last block, where `ask` is False."""
        self.first_missing: list[tuple[bytes, str]] = []
        """Those of the last block's missing requests that are a first attempt."""
        self._chooser, self._tokens = chooser, tokens
        self._reporter = Reporter(progress, self.counts, engine, total)
        self._again = conditions_of(options.regenerate)
        self._judged = judged
        if judged is not None:
            chooser.flood.changes()
        self._ask_engine = ask
        self._following: pa.RecordBatch | None = None
        """The block that will be judged next, where that is known."""
        self._coming: tuple[Answers, list[tuple[str, bytes]], Meanwhile[Part]] | None = None
        """What was known of it, what was missing, and the answers to that."""
        self._asked = False

    def run(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Rows (`tables.PARAPHRASES`) and rejects (`tables.PARAPHRASE_REJECTS`), block by block, in input order.

        Args:
            batches: the columns `INPUT_COLUMNS[step]`.

        Raises:
            EngineError: the engine failed; all that it had answered is kept.
        """
        waiting = blocks(wanted(batches, self.options.fraction))
        try:
            while group := [(block, self._looked(block)) for block in islice(waiting, AHEAD_BLOCKS)]:
                unknown = [block for block, (_, known) in group if known is None]
                self._look_ahead(unknown)
                following = chain(unknown[1:], [None])
                for block, (key, known) in group:
                    if known is None:
                        self._following = next(following)
                    yield self._written(block, self._judge(block, key) if known is None else self._recalled(known))
                    self._reporter.finished(block.num_rows)
        finally:
            if self._coming is not None:
                self._coming[2].close()

    def _look_ahead(self, group: Sequence[pa.RecordBatch]) -> None:
        if len(group) > 1:
            texts = dict.fromkeys(text for block in group for text in self._sources(block))
            self._known.expect(self._request(self.prompt, 0).keys(list(texts)))

    def _sources(self, block: pa.RecordBatch) -> list[str]:
        """The text that each row is asked about."""
        return block.column("caption" if self.step == 1 else "paraphrase_1").to_pylist()

    def _looked(self, block: pa.RecordBatch) -> tuple[bytes, Judgement | None]:
        return (b"", None) if self._judged is None else self._judged.look(block)

    def _recalled(self, known: Judgement) -> Judgement:
        self.missing.clear()
        self.first_missing.clear()
        self._chooser.flood.repeat(known.flood)
        self.counts.requested += known.requested
        self.counts.cached += known.requested
        self.counts.judged_before += known.rows
        return known

    def _judge(self, block: pa.RecordBatch, key: bytes) -> Judgement:
        """Ask for what is missing, and judge every answer."""
        captions = block.column("caption").to_pylist()
        sources = self._sources(block)
        self.missing.clear()
        self.first_missing.clear()
        requested, self._asked = self.counts.requested, False
        state = BlockState(captions, sources)
        pending = list(range(len(captions)))
        for attempt in range(self.options.attempts):
            if pending:
                pending = self._attempt(state, pending, attempt)
        for condition in self._again:
            chosen = condition.rows(state.conditioned(block, self.step))
            asked = sorted(state.last)
            for attempt, rows in groupby(
                sorted((state.last[asked[at]][0] + 1, asked[at]) for at in chosen), itemgetter(0)
            ):
                self._attempt(state, [row for _, row in rows], attempt)
        latest = [(sources[row], state.last[row][1]) for row in sorted(state.last)[-self.samples.size :]]
        judgement = Judgement(
            len(captions),
            state.outcomes(self._tokens),
            state.reject_rows(block, self.step),
            self.counts.requested - requested,
            [(text, verdict.answer, verdict.reason, verdict.detail) for text, verdict in latest],
            b"" if self._judged is None else self._chooser.flood.changes(),
        )
        if self._judged is not None:
            if self.missing:
                self._judged.stop()
            self._judged.keep(key, judgement, self._asked)
        return judgement

    def _written(self, block: pa.RecordBatch, judgement: Judgement) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Rows and rejects of a judged block, counted and shown."""
        self.counts.captions += judgement.rows
        self.counts.accepted += judgement.kept.num_rows
        self.counts.rejected.update(judgement.rejects.column("reason").to_pylist())
        self.samples.judged(judgement.samples)
        return paraphrase_rows(block, judgement.kept, self.step), judgement.rejects

    def _attempt(self, state: BlockState, rows: Sequence[int], attempt: int) -> list[int]:
        """Ask for rows and judge the answers; those that were rejected."""
        captions, sources = state.captions, state.sources
        answers = self._answers(self.prompt, list(dict.fromkeys(sources[row] for row in rows)), attempt)
        if attempt == 0:
            self.first_missing += self.missing
        told = {source: caption for caption, source in zip(reversed(captions), reversed(sources), strict=True)}
        answers = self._with_synonyms(answers, told)
        rows = [row for row in rows if sources[row] in answers]
        pairs = list(dict.fromkeys((captions[row], sources[row]) for row in rows))
        # The engine need not wait for the gates, as long as nothing more will be asked about this block.
        with self._ask_ahead() if attempt + 1 == self.options.attempts and not self._again else nullcontext():
            chosen = self._chooser.choose([Request(c, s, answers[s][1]) for c, s in pairs])
        verdicts = dict(zip(pairs, chosen, strict=True))
        rejected = []
        for row in rows:
            verdict, key = verdicts[captions[row], sources[row]], answers[sources[row]][0]
            if verdict.reason is None:
                state.kept[row] = verdict, key
            else:
                state.rejects.append((row, attempt, verdict, key))
                rejected.append(row)
            state.last[row] = attempt, state.kept[row][0] if row in state.kept else verdict
        return rejected

    def _ask_ahead(self) -> Meanwhile[Part] | nullcontext[None]:
        """Ask about the block that follows, for as long as the context lasts."""
        if self._following is None or not self._ask_engine or self.engine.name in SAME_CORES:
            return nullcontext()
        answers, todo = self._lookup(self.prompt, list(dict.fromkeys(self._sources(self._following))), 0)
        self._following = None
        if not todo:
            return nullcontext()
        coming = Meanwhile(self._ask(self.prompt, 0, todo))
        self._coming = answers, todo, coming
        return coming

    def _with_synonyms(self, answers: Answers, captions: Mapping[str, str]) -> Answers:
        """Every text's answers and, where the options want that, answers with single words swapped."""
        encoder = self._chooser.encoder
        if not swaps_words(self.options, self.prompt) or encoder is None or self.engine.name == "file":
            return answers

        def fetch(wanted: Sequence[str]) -> dict[str, Sequence[str]]:
            return {word: found for word, (_, found) in self._answers(THESAURUS, wanted, 0).items()}

        synonyms = Synonyms(fetch, encoder.encode, self._chooser.pieces)
        return with_swaps(answers, captions, self.step, synonyms)

    def _answers(self, prompt: PromptTemplate, texts: Sequence[str], attempt: int) -> Answers:
        """Text → (key, raw answers), from the cache or the engine."""
        if self._coming is None:
            answers, todo = self._lookup(prompt, texts, attempt)
            parts: Iterable[Part] = self._ask(prompt, attempt, todo)
        else:
            (answers, todo, parts), self._coming = self._coming, None
        self.counts.requested += len(texts)
        self.counts.cached += len(answers)
        if not self._ask_engine:
            self.missing += [(key, text) for text, key in todo]
            return answers
        self._asked |= bool(todo)
        done = len(answers)
        if todo and attempt == 0 and prompt is self.prompt:
            self._reporter.begun(done / len(texts))
        for part in parts:
            answers |= {text: (key, completion.texts) for text, key, completion in part}
            done += len(part)
            if attempt == 0 and prompt is self.prompt:
                latest = part[-self.samples.size :]
                self.samples.answered((text, answer) for text, _, found in latest for answer in found.texts[:1])
                self._reporter.tell(done / len(texts))
            else:
                what = "words" if prompt is THESAURUS else "again"
                self._reporter.tell(1, {what: done, f"{what}_total": len(texts)})
        # In the order of the texts, whichever was answered first.
        return {text: answers[text] for text in texts if text in answers}

    def _lookup(
        self, prompt: PromptTemplate, texts: Sequence[str], attempt: int
    ) -> tuple[Answers, list[tuple[str, bytes]]]:
        """Text → (key, raw answers) of the requests that the cache knows, and text and key of the others."""
        array = self._request(prompt, attempt).keys(texts)
        keys: list[bytes] = array.to_pylist()
        known = self._known.lookup(array)
        answers = {text: (key, known[key]) for text, key in zip(texts, keys, strict=True) if key in known}
        return answers, [(text, key) for text, key in zip(texts, keys, strict=True) if key not in known]

    def _ask(
        self, prompt: PromptTemplate, attempt: int, todo: Sequence[tuple[str, bytes]]
    ) -> Generator[Part, None, None]:
        return self._asker.ask(prompt, self._step_of(prompt), self._sampling(prompt), attempt, todo)

    def _step_of(self, prompt: PromptTemplate) -> int:
        """Both steps share what is known about words."""
        return WORD_STEP if prompt is THESAURUS else self.step

    def _request(self, prompt: PromptTemplate, attempt: int) -> RequestKeys:
        sampling, seed = sampling_json(self._sampling(prompt)), self.options.seed
        return RequestKeys(self._step_of(prompt), self.engine.model, prompt.id, prompt.hash, sampling, seed, attempt)

    def _sampling(self, prompt: PromptTemplate) -> SamplingOptions:
        return WORD_SAMPLING if prompt is THESAURUS else self.options.sampling
