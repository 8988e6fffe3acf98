"""Captions with hard negatives: from the rejects of the paraphrase stages, and by rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import NegativeOptions
from paraclip_core.errors import TrainingError
from paraclip_core.training.data import CAPTION_ID, RowBatch, TrainingRows, id_array, spool_rows
from paraclip_core.training.negatives import NEGATIVE, POSITIVE, TEACHING, rule_negative, says_something_else
from storage.parquet import iter_batches
from tasks.training.data import HeldOut, TextTokens

__all__ = ["negative_rows"]


def negative_rows(
    folder: Path,
    captions: Path,
    rejects: Sequence[Path],
    held_out: HeldOut,
    tokens: TextTokens,
    options: NegativeOptions,
    context_length: int,
) -> TrainingRows:
    """Captions and their negatives, kinds `positive` and `negative`, in the order of the captions.

    Args:
        folder: scratch folder, written unless it is complete.
        captions: the ingested captions.
        rejects: folders of rejects.
        held_out: the images that training leaves out.
        tokens: how the base gets its tokens.
        options: which negatives.
        context_length: of stored tokens.

    Raises:
        TrainingError: no caption has a negative.
    """
    counts: dict[str, int] = dict.fromkeys((*TEACHING, "rules"), 0)
    wrong = _Wrong.read(rejects) if options.rejects else None

    def stream() -> Iterator[RowBatch]:
        encode = _encoder(tokens, context_length)
        for batch in iter_batches(captions, [CAPTION_ID, "image_id", "caption", "split"]):
            train = batch.filter(pc.call_function("equal", [batch["split"], pa.scalar("train")]))
            rows = held_out.images.find(train["image_id"])
            usable = rows >= 0
            usable[usable] = held_out.trains(rows[usable])
            some, rows = train.filter(pa.array(usable)), rows[usable]
            texts = some["caption"].to_pylist()
            taught = [] if wrong is None else wrong.of(some[CAPTION_ID])
            ruled = enumerate(map(rule_negative, texts)) if options.rules else ()
            by_rule = [(number, "rules", negative[1]) for number, negative in ruled if negative is not None]
            pairs = [*taught, *by_rule]
            for _, reason, _ in pairs:
                counts[reason] += 1
            if pairs:
                positive = encode([texts[number] for number, _, _ in pairs])
                negative = encode([text for _, _, text in pairs])
                yield {POSITIVE: positive, NEGATIVE: negative}, rows[[number for number, _, _ in pairs]]

    made = spool_rows(folder, (POSITIVE, NEGATIVE), stream(), lambda: counts, tokens.dtype)
    if not len(made):
        raise TrainingError(
            "finetune.negatives: no training caption has a hard negative; turn on rules, or set the weight to 0"
        )
    return made


def _encoder(tokens: TextTokens, context_length: int) -> Callable[[list[str]], pa.ListArray | pa.ChunkedArray]:
    tokenizer = Tokenizer(context_length)

    def encode(texts: list[str]) -> pa.ListArray | pa.ChunkedArray:
        return tokens.convert(pa.array(texts, pa.string()) if tokens.own else tokenizer.encode_batch(texts))

    return encode


@dataclass(frozen=True)
class _Wrong:
    """Rejected answers that are wrong of the image, by caption."""

    keys: NDArray[np.uint64]
    """First half of each caption's id, ascending."""
    reasons: list[str]
    answers: list[str]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> _Wrong:
        """Read what teaches; an answer of a caption counts once."""
        rows: dict[tuple[int, str], str] = {}
        for folder in folders:
            for batch in iter_batches(folder, [CAPTION_ID, "reason", "detail", "answer"]):
                teaching = batch.filter(
                    pc.call_function("is_in", [batch["reason"]], pc.SetLookupOptions(pa.array(TEACHING)))
                )
                columns = (teaching[name].to_pylist() for name in ("reason", "detail", "answer"))
                for key, reason, detail, answer in zip(_keys(teaching[CAPTION_ID]), *columns, strict=True):
                    if answer and says_something_else(reason, detail):
                        rows.setdefault((int(key), answer), reason)
        ordered = sorted(rows.items())
        return cls(
            np.array([key for (key, _), _ in ordered], np.uint64),
            [reason for _, reason in ordered],
            [answer for (_, answer), _ in ordered],
        )

    def of(self, ids: pa.FixedSizeBinaryArray) -> list[tuple[int, str, str]]:
        """Number among the ids, reason and answer of each."""
        keys = _keys(ids)
        first, after = (np.searchsorted(self.keys, keys, side) for side in ("left", "right"))
        return [
            (int(number), self.reasons[place], self.answers[place])
            for number in np.flatnonzero(after > first)
            for place in range(first[number], after[number])
        ]


def _keys(ids: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    return np.ascontiguousarray(id_array(ids)[:, :8]).view("<u8")[:, 0]
