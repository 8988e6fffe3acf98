"""What paraphrasing would ask for, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.generate import INPUT_COLUMNS, Paraphraser, Tokens
from paraclip_core.paraphrase.protocol import Engine, GenerationCache

__all__ = ["MissingRequests", "missing_requests"]

CHARS_PER_TOKEN = 4.2
ANSWER_TOKENS_PER_WORD = 1.3


@dataclass(frozen=True)
class MissingRequests:
    """Requests that a run would make, by step."""

    captions: int
    """Training captions in the chosen fraction."""
    step_1: int
    """Different requests of step 1 that the cache does not know."""
    step_2: int
    """Different requests of step 2 that the cache does not know, for known outputs of step 1."""
    step_2_expected: int
    """Requests of step 2 whose text depends on an answer of step 1 that is not there yet: one each, at most."""
    prompt_tokens: int
    """Estimated, examples included (an engine with a prefix cache computes those once)."""
    completion_tokens: int
    """Estimated, all answers of a request together."""

    @property
    def total(self) -> int:
        """Requests of both steps."""
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
) -> MissingRequests:
    """Count what a run would ask for, with the run's own loop, but without asking.

    Step 1's known answers are judged as the run would judge them, so the count is exact for everything whose input
    is known. What hangs on an answer that is not there yet cannot be known and is not counted: retries (`attempts`)
    and the words of `synonyms`.

    Args:
        captions: training captions with the columns `INPUT_COLUMNS[1]`.
        options: the paraphrase options.
        engine: only its name and model are looked at.
        cache: every generation that was ever paid for.
        chooser: step → a new set of gates of that step.
        tokens: texts → list<uint16> array of CLIP tokens.
        step_1_rows: the rows of a finished step 1 (`INPUT_COLUMNS[2]`), where there is one: then nothing is judged
            again.
    """
    first, second = _Count(), _Count()
    expected = _Count()
    look_1 = Paraphraser(1, options, engine, cache, chooser(1), tokens, ask=False)
    look_2 = Paraphraser(2, options.model_copy(update={"fraction": 1.0}), engine, cache, chooser(2), tokens, ask=False)

    def step_1_output() -> Iterable[pa.RecordBatch]:
        for rows, _ in look_1.run(captions):
            first.add(look_1)
            expected.add(look_1, once=True)
            yield rows.select(list(INPUT_COLUMNS[2]))

    if step_1_rows is None:
        for _ in look_2.run(step_1_output()):
            second.add(look_2)
    else:
        for _ in look_2.run(step_1_rows):
            second.add(look_2)
    return MissingRequests(
        captions=look_1.counts.captions if step_1_rows is None else look_2.counts.captions,
        step_1=first.distinct(),
        step_2=second.distinct(),
        step_2_expected=expected.distinct(),
        prompt_tokens=first.prompt_tokens(look_1, first.words)
        + second.prompt_tokens(look_2, second.words)
        + expected.prompt_tokens(look_2, expected.words),
        completion_tokens=int(
            (first.words + second.words + expected.words) * ANSWER_TOKENS_PER_WORD * options.sampling.n
        ),
    )


class _Count:
    """Distinct missing requests, eight bytes each."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self.words = 0
        self._characters = 0

    def add(self, look: Paraphraser, once: bool = False) -> None:
        """Take over what was missing in the last block; `once` counts the first attempt's only."""
        missing = look.first_missing if once else look.missing
        self._keys.append(np.array([int.from_bytes(key[:8], "little") for key, _ in missing], dtype=np.uint64))
        self.words += sum(len(text.split()) + 2 for _, text in missing)
        self._characters += sum(len(text) for _, text in missing)

    def distinct(self) -> int:
        return len(np.unique(np.concatenate(self._keys))) if self._keys else 0

    def prompt_tokens(self, look: Paraphraser, words: int) -> int:
        fixed = sum(len(content) + 12 for _, content in look.prompt.messages(""))
        return int((self.distinct() * fixed + self._characters) / CHARS_PER_TOKEN)
