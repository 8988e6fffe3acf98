"""Tokenising of cleaned captions, equal to open_clip's ``SimpleTokenizer``, without torch and several times faster.

CLIP's pattern never matches across a blank, so a text's tokens are those of its blank-separated pieces in a row, and a
memo of pieces answers nearly all of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import pyarrow as pa
import regex

from paraclip_core.captions.bpe import BytePairs, byte_symbols, load_byte_pairs

__all__ = ["Tokeniser"]

_PATTERN = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
_MEMO_PIECES = 100_000
_MEMO_LETTERS = 40


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
        """Ids of many cleaned texts as a list<uint16> array, ragged, one list a text."""
        values, offsets, encode = array("H"), array("i", [0]), self.encode
        for text in texts:
            values.extend(encode(text))
            offsets.append(len(values))
        return pa.ListArray.from_arrays(
            pa.array(np.frombuffer(offsets, dtype=np.int32)), pa.array(np.frombuffer(values, dtype=np.uint16))
        )


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
