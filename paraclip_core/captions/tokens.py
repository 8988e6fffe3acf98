"""Tokenising of cleaned captions, equal to open_clip's ``SimpleTokenizer``, without torch and several times faster.

CLIP's pattern never matches across a blank, so a text's tokens are those of its blank-separated pieces in a row, and a
memo of pieces answers nearly all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import pyarrow as pa
import regex
from numpy.typing import NDArray

from paraclip_core.captions.bpe import BytePairs, byte_symbols, load_byte_pairs

__all__ = ["Tokeniser"]

_PATTERN = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
_MEMO_PIECES = 100_000
_MEMO_LETTERS = 40
BLANK, LINE_BREAK = 32, 10


class Tokeniser:
    """Turns cleaned texts (see :func:`paraclip_core.captions.clean.clean`) into CLIP's token ids."""

    def __init__(self, context_length: int = 77, memo_pieces: int = _MEMO_PIECES) -> None:
        """Cut texts to `context_length` ids; remember the ids of at most twice `memo_pieces` pieces and as many words.

        Raises:
            ModelError: open_clip's vocabulary file is not there.
        """
        pairs = load_byte_pairs()
        self.context_length = context_length
        self.start, self.end = pairs.start, pairs.end
        self._ids_of = _pieces(pairs, memo_pieces).__getitem__

    def encode(self, text: str) -> list[int]:
        """Ids of one cleaned text: start … end, at most `context_length` of them, the end always last."""
        ids = [self.start]
        ids.extend(chain.from_iterable(map(self._ids_of, text.lower().split(" "))))
        if len(ids) >= self.context_length:
            del ids[self.context_length - 1 :]
        ids.append(self.end)
        return ids

    def encode_batch(self, texts: Iterable[str]) -> pa.ListArray:
        """Ids of many cleaned texts as a list<uint16> array, ragged, one list a text.

        Equal to :meth:`encode` of each. Python looks at every different piece of the batch once; where its tokens go is
        worked out for all at once.
        """
        given = list(texts)
        if not given:
            return pa.array([], pa.list_(pa.uint16()))
        lines = "\n".join(given)
        if lines.count("\n") >= len(given):  # not cleaned; no token reaches across either
            lines = "\n".join([text.replace("\n", " ") for text in given])
        # No letter's lower case depends on what is beyond a line break.
        pieces, last = _pieces_of(lines.lower())
        ids = [self._ids_of(piece[:-1]) for piece in pieces.dictionary.cast(pa.large_string()).to_pylist()]
        return self._assembled(ids, pieces.indices.to_numpy(), last)

    def _assembled(
        self, ids: list[tuple[int, ...]], pieces: NDArray[np.int32], last: NDArray[np.int64]
    ) -> pa.ListArray:
        """Put texts together: number `i` consists of the pieces up to and with `last[i]`, whose ids are known."""
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.uint16, int(counts.sum()))
        sizes = counts[pieces]
        ends = np.cumsum(sizes)
        # Token j of the batch is token j - (ends - sizes) of its piece.
        values = flat[np.repeat((np.cumsum(counts) - counts)[pieces] - (ends - sizes), sizes) + np.arange(sizes.sum())]
        lengths = np.diff(ends[last], prepend=0)
        kept = np.minimum(lengths, self.context_length - 2)
        if (kept < lengths).any():
            within = np.arange(len(values)) - np.repeat(ends[last] - lengths, lengths)
            values = values[within < self.context_length - 2]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept + 2)])
        whole = np.empty(offsets[-1], np.uint16)
        inner = np.ones(len(whole), bool)
        inner[offsets[:-1]] = inner[offsets[1:] - 1] = False
        whole[offsets[:-1]], whole[offsets[1:] - 1], whole[inner] = self.start, self.end, values
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(whole))


class _Memo(dict[str, tuple[int, ...]]):
    """Ids of the texts seen lately: when it is full it becomes the old generation, from which hits are taken over."""

    def __init__(self, compute: Callable[[str], tuple[int, ...]], size: int) -> None:
        super().__init__()
        self._compute, self._size = compute, size
        self._old: dict[str, tuple[int, ...]] = {}

    def __missing__(self, text: str) -> tuple[int, ...]:
        ids = self._old.get(text)
        if ids is None:
            ids = self._compute(text)
        if len(text) <= _MEMO_LETTERS:
            if len(self) >= self._size:
                self._old = dict(self)
                self.clear()
            self[text] = ids
        return ids


def _pieces(pairs: BytePairs, size: int) -> _Memo:
    """Memo of blank-separated pieces over a memo of the pattern's words: a new piece mostly consists of known words."""
    symbols = byte_symbols()

    def of_word(word: str) -> tuple[int, ...]:
        return pairs.encode("".join([symbols[byte] for byte in word.encode()]))

    word_ids = _Memo(of_word, size).__getitem__

    def of_piece(piece: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(word_ids, _PATTERN.findall(piece))))

    return _Memo(of_piece, size)


def _pieces_of(lines: str) -> tuple[pa.DictionaryArray, NDArray[np.int64]]:
    """The blank-separated pieces of all lines, each with a blank at its end, and the number of each line's last one."""
    letters = np.frombuffer(bytearray(f"{lines}\n".encode()), np.uint8)
    separators = np.flatnonzero((letters == BLANK) | (letters == LINE_BREAK))
    last = np.flatnonzero(letters[separators] == LINE_BREAK)
    letters[separators] = BLANK
    offsets = np.concatenate([np.zeros(1, np.int64), separators + 1])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(letters)]
    return pa.Array.from_buffers(pa.large_binary(), len(separators), buffers).dictionary_encode(), last
