"""What paraphrasing would ask for, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.block import INPUT_COLUMNS, Tokens
from paraclip_core.paraphrase.choose import NOT_JUDGED, Chooser
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.judged import Judgements
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.prompts import PromptTemplate, bare, prompt_for, swaps_words
from paraclip_core.paraphrase.protocol import Engine, GenerationCache
from paraclip_core.paraphrase.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP, swappable
from paraclip_core.progress import Progress, silent

__all__ = [
    "Asked",
    "Judged",
    "MissingRequests",
    "asks_words",
    "estimated",
    "further_words",
    "missing_requests",
    "word_requests",
]

CHARS_PER_TOKEN, MESSAGE_CHARS = 3.9, 20
"""Of a prompt's text, and what a chat template puts around each message; measured on the few-shot prompts."""
ANSWER_TOKENS_PER_WORD = 1.15
"""Tokens of an answer for each word of its input, measured on the few-shot prompts."""
WORD_ANSWER_TOKENS = 24
"""All answers to a word together, measured."""
WORD_CHARS = 7
FURTHER_WORDS = {1: (0.4, 4.5, 0.5), 2: (0.0, 2.6, 0.72)}
"""By step, what is asked for beyond the content words of the captions: alternatives to each of these, and words of the
answers, of which the more texts bring the fewer new ones (factor and power)."""
MOST_FURTHER_WORDS = {1: 3.5, 2: 6.7}
"""For each content word of the captions. Measured, as the above, on rendered scenes (840 texts of 42 words: 147 further
words at step 1, 281 at step 2) and on Flickr8k (61 texts of 188 words: 114 and 32)."""


@dataclass(frozen=True)
class Asked:
    """Requests and their estimated tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    """Examples included (an engine with a prefix cache computes those once)."""
    completion_tokens: int = 0
    """All answers of a request together."""

    def __add__(self, other: Asked) -> Asked:
        """Both together."""
        return Asked(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def share(self, of: float) -> Asked:
        """So much of it, rounded."""
        return Asked(*(round(of * count) for count in (self.requests, self.prompt_tokens, self.completion_tokens)))

    def tokens(self, prompt: float, completion: float) -> Asked:
        """The same requests with so many times the tokens; 0 leaves them as they are."""
        return Asked(
            self.requests, round((prompt or 1) * self.prompt_tokens), round((completion or 1) * self.completion_tokens)
        )


@dataclass(frozen=True)
class Judged:
    """Rows of a step, by what is known of them."""

    accepted: int = 0
    open: int = 0
    """Rows that wait for an answer, or that nobody has judged."""
    rejected: int = 0
    """Rows whose answers were rejected."""


@dataclass(frozen=True)
class MissingRequests:
    """Requests that a run would make, by step."""

    captions: int
    """Rows that the first unfinished step looks at: training captions in the chosen fraction, or step 1's output."""
    first: Asked
    """Different requests of step 1 that the cache does not know."""
    second: Asked
    """Different requests of step 2 that the cache does not know, for known outputs of step 1."""
    expected: Asked
    """Requests of step 2 whose text depends on an answer of step 1 that is not there yet: one each, at most."""
    words: Asked | None
    """Content words of captions without answers, to be asked for other words for sure; `further_words` follow. None
    where no words are asked for."""
    rows_1: Judged
    """Rows of step 1; where it is finished, its output."""
    rows_2: Judged
    """Rows of step 2 whose text is known."""

    @property
    def step_1(self) -> int:
        """Different requests of step 1."""
        return self.first.requests

    @property
    def step_2(self) -> int:
        """Different requests of step 2 for known outputs of step 1."""
        return self.second.requests

    @property
    def step_2_expected(self) -> int:
        """Requests of step 2 for outputs that are not there yet, at most."""
        return self.expected.requests

    @property
    def total(self) -> int:
        """Requests of both steps, words aside."""
        return self.step_1 + self.step_2 + self.step_2_expected


def missing_requests(
    captions: Iterable[pa.RecordBatch],
    options: ParaphraseOptions,
    engine: Engine,
    cache: GenerationCache,
    chooser: Callable[[int], Chooser],
    tokens: Tokens,
    *,
    step_1_rows: Iterable[pa.RecordBatch] | None = None,
    judged: Callable[[int], Judgements | None] = lambda step: None,
    progress: Progress = silent,
) -> MissingRequests:
    """Count what a run would ask for, with the run's own loop, but without asking.

    Step 1's known answers are judged as the run would judge them, so the count is exact for everything whose input
    is known. What hangs on an answer that is not there yet cannot be known and is not counted: retries (`attempts`),
    and of the words of `synonyms` those that the captions do not hold. Step 2's answers are judged only where another
    request may follow from it, or judging costs next to nothing.

    Args:
        captions: training captions with the columns `INPUT_COLUMNS[1]`.
        options: the paraphrase options.
        engine: only its name and model are looked at.
        cache: every generation that was ever paid for.
        chooser: step → a new set of gates of that step.
        tokens: texts → list<uint16> array of CLIP tokens.
        step_1_rows: the rows of a finished step 1 (`INPUT_COLUMNS[2]`), where there is one: then nothing is judged
            again.
        judged: step → what became of its blocks in earlier passes, which are not judged again.
        progress: told how many rows the pass has been through.
    """
    first, second, expected = _Count(), _Count(), _Count()
    rows_1, rows_2 = _Rows(), _Rows()
    whole = options.model_copy(update={"fraction": 1.0})
    chooser_1 = chooser(1)
    chooser_2, judged_2 = chooser(2), judged(2)
    chooser_2.blind = chooser_2.encoder is not None and options.attempts == 1 and not options.regenerate
    if chooser_2.blind and judged_2 is not None:
        # What nobody judged is no outcome.
        judged_2.stop()
    look_1 = Paraphraser(1, options, engine, cache, chooser_1, tokens, ask=False, judged=judged(1), progress=progress)
    look_2 = Paraphraser(2, whole, engine, cache, chooser_2, tokens, ask=False, judged=judged_2, progress=progress)
    words = _Words(options, engine, cache) if asks_words(options) else None

    def step_1_output() -> Iterable[pa.RecordBatch]:
        for rows, rejects in look_1.run(captions):
            first.add(look_1.missing)
            expected.add(look_1.first_missing)
            rows_1.add(look_1, rows, rejects)
            if words is not None:
                words.add(text for _, text in look_1.first_missing)
            yield rows.select(list(INPUT_COLUMNS[2]))

    for rows, rejects in look_2.run(step_1_output() if step_1_rows is None else step_1_rows):
        second.add(look_2.missing)
        rows_2.add(look_2, rows, rejects)
    n = options.sampling.n
    return MissingRequests(
        captions=look_1.counts.captions if step_1_rows is None else look_2.counts.captions,
        first=first.asked(look_1.prompt, n),
        second=second.asked(look_2.prompt, n),
        expected=expected.asked(look_2.prompt, n),
        words=None if words is None else words.asked(),
        rows_1=rows_1.judged() if step_1_rows is None else Judged(look_2.counts.captions),
        rows_2=rows_2.judged(),
    )


class _Count:
    """Distinct missing requests, eight bytes each."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._words = self._characters = self._added = 0

    def add(self, missing: Sequence[tuple[bytes, str]]) -> None:
        """Take over the keys and texts that were missing in a block."""
        self._keys.append(np.array([int.from_bytes(key[:8], "little") for key, _ in missing], dtype=np.uint64))
        self._words += sum(len(text.split()) for _, text in missing)
        self._characters += sum(len(text) for _, text in missing)
        self._added += len(missing)

    def _distinct(self) -> int:
        if not self._added:
            return 0
        # Sorted in place: a set of them all would take many times their memory.
        whole = np.concatenate(self._keys)
        self._keys = [whole]
        whole.sort()
        return 1 + int(np.count_nonzero(whole[1:] != whole[:-1]))

    def asked(self, prompt: PromptTemplate, answers: int) -> Asked:
        """Them with the prompt's tokens and those of `answers` answers each."""
        requests = self._distinct()
        # A text that was missing in several blocks was added as often.
        once = requests / max(self._added, 1)
        return _asked(prompt, requests, once * self._characters, once * self._words, answers)


class _Rows:
    """Rows of a step, counted by what became of them."""

    def __init__(self) -> None:
        self._seen = self._accepted = self._rejected = 0

    def add(self, look: Paraphraser, rows: pa.RecordBatch, rejects: pa.RecordBatch) -> None:
        """Take over what became of a block."""
        self._seen = look.counts.captions
        self._accepted += rows.num_rows
        # An accepted row may have been rejected at an earlier attempt.
        ids, reasons = rejects.column("caption_id").to_pylist(), rejects.column("reason").to_pylist()
        refused = {row for row, reason in zip(ids, reasons, strict=True) if reason != NOT_JUDGED}
        self._rejected += len(refused.difference(rows.column("caption_id").to_pylist()) if refused else ())

    def judged(self) -> Judged:
        open_rows = max(self._seen - self._accepted - self._rejected, 0)
        return Judged(self._accepted, open_rows, self._rejected)


class _Words:
    """Content words of captions that have no answer yet, and that the cache does not know either."""

    def __init__(self, options: ParaphraseOptions, engine: Engine, cache: GenerationCache) -> None:
        sampling = sampling_json(WORD_SAMPLING)
        self._request = RequestKeys(
            WORD_STEP, engine.model, THESAURUS.id, THESAURUS.hash, sampling, options.seed, attempt=0
        )
        self._cache = cache
        self._seen: set[str] = set()
        self._missing = self._characters = 0

    def add(self, texts: Iterable[str]) -> None:
        new = sorted({word for text in set(texts) for word in swappable(bare(text))} - self._seen)
        if not new:
            return
        self._seen.update(new)
        keys = self._request.keys(new)
        known = set(self._cache.lookup(keys).column("key").to_pylist())
        missing = [word for word, key in zip(new, keys.to_pylist(), strict=True) if key not in known]
        self._missing += len(missing)
        self._characters += sum(map(len, missing))

    def asked(self) -> Asked:
        prompt = int(self._missing * _fixed_tokens(THESAURUS) + self._characters / CHARS_PER_TOKEN)
        return Asked(self._missing, prompt, self._missing * WORD_ANSWER_TOKENS)


def asks_words(options: ParaphraseOptions) -> bool:
    """Whether a run with these options asks for other words for single words."""
    prompted = swaps_words(options, prompt_for(options, 1))
    return prompted and options.engine != "file" and options.chosen_gates().preset != "paper"


def further_words(step: int, words: int, texts: int, known: int) -> int:
    """Words that a step asks for beyond the captions' own, as far as one can tell before there are answers.

    Args:
        step: 1 or 2.
        words: content words of the captions that are new.
        texts: texts without an answer.
        known: texts with answers, which have brought their words already.
    """
    each, factor, power = FURTHER_WORDS[step]
    found = each * words + factor * ((known + texts) ** power - known**power)
    return round(min(found, MOST_FURTHER_WORDS[step] * words) if words else found)


def word_requests(count: int) -> Asked:
    """What is expected of requests for so many single words."""
    return Asked(
        count, int(count * (_fixed_tokens(THESAURUS) + WORD_CHARS / CHARS_PER_TOKEN)), count * WORD_ANSWER_TOKENS
    )


def estimated(prompt: PromptTemplate, texts: Sequence[str], answers: int) -> Asked:
    """What is expected of a request for each of the texts, with `answers` answers each."""
    characters, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
    return _asked(prompt, len(texts), characters, words, answers)


def _asked(prompt: PromptTemplate, requests: int, characters: float, words: float, answers: int) -> Asked:
    return Asked(
        requests,
        int(requests * _fixed_tokens(prompt) + characters / CHARS_PER_TOKEN),
        int(words * ANSWER_TOKENS_PER_WORD * answers),
    )


def _fixed_tokens(prompt: PromptTemplate) -> float:
    """Tokens of the prompt around the text."""
    return sum(len(content) + MESSAGE_CHARS for _, content in prompt.messages("")) / CHARS_PER_TOKEN
