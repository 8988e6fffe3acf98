"""Tokens of cleaned captions, equal to open_clip's ``SimpleTokenizer``, without torch and several times faster.

CLIP's pattern never matches across a space, so a text's tokens are those of its space-separated pieces, and a cache of
pieces holds nearly all of them. The library `tokenizers` merges byte pairs.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import regex
from numpy.typing import NDArray
from tokenizers.models import BPE

from paraclip_core.errors import ModelError

CONTEXT_LENGTH = 77
"""Number of ids that a text is truncated to, start and end included."""
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
SPECIAL = ("<start_of_text>", "<end_of_text>")
_PATTERN = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
_MEMO_PIECES = 100_000
_MEMO_LETTERS = 40
BLANK, LINE_BREAK = 32, 10


class Tokenizer:
    """Turns cleaned texts (see :func:`paraclip_core.captions.clean.clean`) into CLIP's token ids."""

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        """Truncate texts to `context_length` ids."""
        pairs = load_byte_pairs()
        self.context_length = context_length
        self.start, self.end = pairs.start, pairs.end
        self._ids_of = _pieces(pairs)

    def encode(self, text: str) -> list[int]:
        """Ids of one cleaned text: start … end, at most `context_length` of them, the end always last."""
        ids = [self.start]
        ids.extend(chain.from_iterable(map(self._ids_of, text.lower().split(" "))))
        if len(ids) >= self.context_length:
            del ids[self.context_length - 1 :]
        ids.append(self.end)
        return ids

    def encode_batch(self, texts: Iterable[str]) -> pa.ListArray:
        """Ids of many cleaned texts as a ragged list<uint16> array, one list per text.

        Equal to :meth:`encode` of each. Python sees every distinct piece of the batch once; NumPy places the tokens.
        """
        texts = list(texts)
        if not texts:
            return pa.array([], pa.list_(pa.uint16()))
        lines = "\n".join(texts)
        if lines.count("\n") >= len(texts):  # not cleaned; no token reaches across either
            lines = "\n".join([text.replace("\n", " ") for text in texts])
        # No letter's lower case depends on what is beyond a line break.
        pieces, last = _pieces_of(lines.lower())
        ids = [self._ids_of(piece[:-1]) for piece in pieces.dictionary.cast(pa.large_string()).to_pylist()]
        return self._assembled(ids, pieces.indices.to_numpy(), last)

    def _assembled(
        self, ids: list[tuple[int, ...]], pieces: NDArray[np.int32], last: NDArray[np.int64]
    ) -> pa.ListArray:
        """Join pieces into texts: text `i` ends with the piece `last[i]`."""
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.uint16, int(counts.sum()))
        sizes = counts[pieces]
        ends = np.cumsum(sizes)
        # Token j of the batch is token j - (ends - sizes) of its piece.
        values = flat[np.repeat((np.cumsum(counts) - counts)[pieces] - (ends - sizes), sizes) + np.arange(sizes.sum())]
        lengths = np.diff(ends[last], prepend=0)
        cut = np.minimum(lengths, self.context_length - 2)
        if (cut < lengths).any():
            within = np.arange(len(values)) - np.repeat(ends[last] - lengths, lengths)
            values = values[within < self.context_length - 2]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(cut + 2)])
        whole = np.empty(offsets[-1], np.uint16)
        inner = np.ones(len(whole), bool)
        inner[offsets[:-1]] = inner[offsets[1:] - 1] = False
        whole[offsets[:-1]], whole[offsets[1:] - 1], whole[inner] = self.start, self.end, values
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(whole))


def _pieces(pairs: BytePairs) -> Callable[[str], tuple[int, ...]]:
    """Cache of space-separated pieces on top of a cache of the pattern's words, which most new pieces consist of."""
    symbols = _byte_symbols()

    @lru_cache(_MEMO_PIECES)
    def of_word(word: str) -> tuple[int, ...]:
        return pairs.encode("".join([symbols[byte] for byte in word.encode()]))

    def of_piece(piece: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(of_word, _PATTERN.findall(piece))))

    remembered = lru_cache(_MEMO_PIECES)(of_piece)
    # Caching long pieces could exhaust memory.
    return lambda piece: remembered(piece) if len(piece) <= _MEMO_LETTERS else of_piece(piece)


def _pieces_of(lines: str) -> tuple[pa.DictionaryArray, NDArray[np.int64]]:
    """The space-separated pieces of all lines, each with a trailing space, and the index of each line's last piece."""
    letters = np.frombuffer(bytearray(f"{lines}\n".encode()), np.uint8)
    separators = np.flatnonzero((letters == BLANK) | (letters == LINE_BREAK))
    last = np.flatnonzero(letters[separators] == LINE_BREAK)
    letters[separators] = BLANK
    offsets = np.concatenate([np.zeros(1, np.int64), separators + 1])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(letters)]
    return pa.Array.from_buffers(pa.large_binary(), len(separators), buffers).dictionary_encode(), last


class BytePairs:
    """CLIP's symbols with their ids, and its merges in the order in which they were learned."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        """Number the symbols as open_clip does: bytes, bytes that end a word, merges, start and end of text."""
        single = list(_byte_symbols().values())
        symbols = [*single, *(symbol + "</w>" for symbol in single), *("".join(pair) for pair in merges), *SPECIAL]
        self.ids = {symbol: number for number, symbol in enumerate(symbols)}
        self.start, self.end = (self.ids[symbol] for symbol in SPECIAL)
        self.merges = merges
        # Without a cache, as words are already cached.
        self._bpe = BPE(vocab=self.ids, merges=merges, end_of_word_suffix="</w>", cache_capacity=0)

    def encode(self, word: str) -> tuple[int, ...]:
        """Ids of one word, given in byte symbols (see :func:`_byte_symbols`)."""
        if word in SPECIAL:
            return (self.ids[word],)
        return tuple([token.id for token in self._bpe.tokenize(word)])


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte, as GPT-2 and CLIP assign them: itself, or one from U+0100 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@lru_cache(maxsize=1)
def load_byte_pairs() -> BytePairs:
    """Read the vocabulary once; open_clip is located but not imported, since it would import torch."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("open_clip, which has CLIP's vocabulary, is not installed: `pip install open_clip_torch`")
    path = Path(spec.submodule_search_locations[0]) / VOCABULARY
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError) as error:
        raise ModelError(f"cannot read CLIP's vocabulary {path} ({error}); reinstall open_clip_torch") from error
    pairs = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    return BytePairs([(first, second) for first, second in pairs])
