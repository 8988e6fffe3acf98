"""Verdicts: judge answers in several processes. A verdict depends on its texts and the gates alone.

Work is divided into blocks (`tables.ANSWERS`); each comes back as rows of `tables.VERDICTS`. How it is divided, and
among how many processes, changes no byte.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions
from paraclip_core.errors import StageError
from paraclip_core.lifetime import die_with
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.judge import Request, gates_digest, make_judge
from paraclip_core.paraphrase.meaning import SentenceEncoder
from paraclip_core.paraphrase.small_model.synonyms import Fetch, Synonyms
from paraclip_core.tables import ACCEPTED, VERDICTS, text_hash

__all__ = ["BLOCK_ROWS", "JudgePool", "JudgeSpec"]

Judged = tuple[pa.RecordBatch, pa.RecordBatch]
"""A block and its verdicts, row by row."""
Waiting = tuple[pa.RecordBatch, Future[pa.RecordBatch]]

BLOCK_ROWS = 512
KILLED = (
    "a process that judges answers was killed; the machine may be out of memory (run.judges has fewer of them). "
    "Verdicts so far are kept; run again to go on from there"
)
IN_PROCESS_BLOCKS = 4
"""Starting processes, which load the sentence encoder, takes as long as judging so much."""


@dataclass(frozen=True)
class JudgeSpec:
    """Everything that a process needs to judge; plain data."""

    gates: GateOptions
    """With the preset resolved."""
    step: int
    examples: tuple[tuple[str, str], ...]
    """The prompt's examples as (user, assistant)."""
    context_length: int
    words: str = ""
    """What names the requests for single words, where answers with swapped words are tried; empty elsewhere."""

    @property
    def digest(self) -> bytes:
        """16 bytes over all that decides a verdict besides the texts."""
        return gates_digest(self.gates, self.step, self.examples, self.context_length, self.words)

    @property
    def max_repeats(self) -> int | None:
        """Inputs for which one answer is no flood yet; None where no answer is a flood."""
        return None if self.gates.preset == "off" else self.gates.max_repeats


class BlockJudge:
    """Judges blocks in this process; the models are loaded by the first one."""

    def __init__(self, spec: JudgeSpec, synonyms: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """`synonyms`: word → words that may be swapped for it, where answers with swapped words are tried."""
        self._digest = spec.digest
        self._judge = make_judge(spec.gates, spec.step, spec.examples, spec.context_length, synonyms)
        self._tokens = Tokenizer(spec.context_length)

    def __call__(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Verdicts (`tables.VERDICTS`) of a block (`tables.ANSWERS`), in its order."""
        captions, sources, answers = (block.column(name).to_pylist() for name in ("caption", "source", "completions"))
        verdicts = self._judge.judge([Request(*request) for request in zip(captions, sources, answers, strict=True)])
        accepted = [one for verdict in verdicts for one in verdict.accepted]
        texts = [one.answer for one in accepted]
        similarities = pa.array([one.similarity for one in accepted], pa.float32())
        flat = pa.StructArray.from_arrays(
            [
                pa.array(texts, pa.string()),
                self._tokens.encode_batch(texts).cast(ACCEPTED.field("tokens").type),
                similarities,
            ],
            fields=list(ACCEPTED),
        )
        offsets = [0]
        for verdict in verdicts:
            offsets.append(offsets[-1] + len(verdict.accepted))
        columns = {
            "generation": block.column("generation"),
            "parent": block.column("parent"),
            "gates": pa.repeat(pa.scalar(self._digest, pa.binary(16)), len(verdicts)),
            "accepted": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
            "answer": pa.array([verdict.answer for verdict in verdicts], pa.string()),
            "reason": pa.array([verdict.reason for verdict in verdicts], pa.string()),
            "detail": pa.array([verdict.detail for verdict in verdicts], pa.string()),
            "similarity": pa.array([verdict.similarity for verdict in verdicts], pa.float32()),
        }
        arrays = [columns[name].cast(VERDICTS.field(name).type) for name in VERDICTS.names]
        return pa.RecordBatch.from_arrays(arrays, schema=VERDICTS)


class JudgePool:
    """Processes that judge, started when there is enough for them; close it at the end."""

    def __init__(self, spec: JudgeSpec, processes: int = 0, scratch: Path | None = None) -> None:
        """`processes` judge at once, 0: one for each core; `scratch` is a folder for what they are told besides."""
        self._spec, self._scratch = spec, scratch
        self._processes = processes or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None
        self._own: BlockJudge | None = None
        self._synonyms: Mapping[str, tuple[str, ...]] | None = None
        self._table = ""
        self._offered: deque[Waiting] = deque()

    def find_synonyms(self, fetch: Fetch, texts: Iterable[str]) -> None:
        """From now on, also try answers with words swapped: those that `fetch` finds for the words of the texts."""
        assert self._scratch is not None
        whole = Tokenizer(context_length=4096)
        encode = SentenceEncoder(self._spec.gates.encoder).encode
        synonyms = Synonyms(fetch, encode, lambda text: len(whole.encode(text)) - 2).table(texts)
        self._synonyms, self._own = synonyms, None
        text = json.dumps(synonyms, sort_keys=True)
        path = self._scratch / f"synonyms-{text_hash(text).hex()}.json"
        path.write_text(text)
        self._table = str(path)

    def judge(self, blocks: Iterable[pa.RecordBatch], rows: int) -> Iterator[Judged]:
        """Blocks (`tables.ANSWERS`) with their verdicts, in the order of the blocks, which have `rows` rows together.

        Raises:
            StageError: a judging process died, or has other code than this one.
            EngineError: the sentence encoder cannot be loaded.
        """
        if self._pool is None and (self._processes == 1 or rows <= IN_PROCESS_BLOCKS * BLOCK_ROWS):
            self._own = self._own or BlockJudge(self._spec, self._synonyms)
            for block in blocks:
                yield block, self._own(block)
            return
        waiting: deque[Waiting] = deque()
        for block in blocks:
            waiting.append((block, self._submit(block)))
            if len(waiting) > 2 * self._processes:
                yield _judged(*waiting.popleft())
        while waiting:
            yield _judged(*waiting.popleft())

    def offer(self, block: pa.RecordBatch) -> bool:
        """Let a process judge a block while the caller does something else, if one has time for it."""
        if self._processes == 1 or len(self._offered) > 2 * self._processes:
            return False
        self._offered.append((block, self._submit(block)))
        return True

    def offered(self, wait: bool = False) -> Iterator[Judged]:
        """Offered blocks with their verdicts, those that are judged; `wait`: all of them."""
        while self._offered and (wait or self._offered[0][1].done()):
            yield _judged(*self._offered.popleft())

    def close(self) -> None:
        """End the processes; what they are judging is given up."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _submit(self, block: pa.RecordBatch) -> Future[pa.RecordBatch]:
        if self._pool is None:
            # Not forked: threads of torch and Arrow do not survive that.
            context = multiprocessing.get_context("spawn")
            arguments = os.getpid(), self._spec, self._spec.digest
            self._pool = ProcessPoolExecutor(self._processes, context, _begin, arguments)
        try:
            return self._pool.submit(_judge_block, block, self._table)
        except BrokenProcessPool as error:
            raise StageError(KILLED) from error


_spec: JudgeSpec
_digest: bytes
_judges: dict[str, BlockJudge] = {}


def _begin(parent: int, spec: JudgeSpec, digest: bytes) -> None:
    """Make a judging process ready: it ends with its parent and leaves the other cores to its siblings."""
    global _spec, _digest
    die_with(parent)
    if gates_of(spec.gates).meaning:
        import torch

        torch.set_num_threads(1)
    _spec, _digest = spec, digest


def _judge_block(block: pa.RecordBatch, table: str) -> pa.RecordBatch:
    if table not in _judges:
        if _spec.digest != _digest:
            # This process has read the code anew, and its verdicts would not be those that the parent looks for.
            raise StageError("the code that judges was changed since this run began; run again to go on with it")
        synonyms = (
            {word: tuple(others) for word, others in json.loads(Path(table).read_text()).items()} if table else None
        )
        _judges.clear()
        _judges[table] = BlockJudge(_spec, synonyms)
    return _judges[table](block)


def _judged(block: pa.RecordBatch, future: Future[pa.RecordBatch]) -> Judged:
    try:
        return block, future.result()
    except BrokenProcessPool as error:
        raise StageError(KILLED) from error
