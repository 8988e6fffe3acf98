"""CLIP's byte-pair vocabulary, read from the file that the open_clip package carries, and its merging of a word."""

from __future__ import annotations

import gzip
import heapq
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from paraclip_core.errors import ModelError

__all__ = ["BytePairs", "byte_symbols", "load_byte_pairs"]

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
NO_MERGE = 1 << 30
SHORT = 48
"""Symbols up to which searching a list is faster than keeping a heap."""
SPECIAL = ("<start_of_text>", "<end_of_text>")


class BytePairs:
    """Symbols, their ids, and the merges in the order in which they were learnt."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        """Number the symbols as open_clip does: bytes, bytes that end a word, merges, start and end of text."""
        single = list(byte_symbols().values())
        symbols = [*single, *(symbol + "</w>" for symbol in single), *("".join(pair) for pair in merges), *SPECIAL]
        self.ids = {symbol: number for number, symbol in enumerate(symbols)}
        self.start, self.end = (self.ids[symbol] for symbol in SPECIAL)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._pairs = merges

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges in the order in which they were learnt."""
        return self._pairs

    def encode(self, word: str) -> tuple[int, ...]:
        """Ids of one word, which is written in byte symbols (see :func:`byte_symbols`)."""
        if word in SPECIAL:
            return (self.ids[word],)
        symbols = [*word[:-1], word[-1] + "</w>"]
        merged = self._merge_short(symbols) if len(symbols) <= SHORT else self._merge_long(symbols)
        return tuple([self.ids[symbol] for symbol in merged])

    def _merge_short(self, symbols: list[str]) -> list[str]:
        """Apply the merges to a word's symbols: again and again the earliest-learnt pair, at all its places."""
        rank_of = self._ranks.get
        ranks = [rank_of(pair, NO_MERGE) for pair in pairwise(symbols)]
        while ranks and (best := min(ranks)) != NO_MERGE:
            joined = "".join(self._pairs[best])
            place = ranks.index(best)
            while place >= 0:
                symbols[place : place + 2] = [joined]
                del ranks[place]
                if place:
                    ranks[place - 1] = rank_of((symbols[place - 1], joined), NO_MERGE)
                if place < len(ranks):
                    ranks[place] = rank_of((joined, symbols[place + 1]), NO_MERGE)
                # The pair at `place` is a longer one now, so the next one is further right.
                place = ranks.index(best, place + 1) if best in ranks[place + 1 :] else -1
        return symbols

    def _merge_long(self, symbols: list[str]) -> list[str]:
        """The same for a long word: the places of each pair are kept in lists and the pairs in a heap.

        So n symbols take O(n log n) instead of O(n²), which a caption of one 2,000-letter word would feel.
        """
        after = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        places: dict[int, list[int]] = {}
        waiting: list[int] = []

        def note(place: int) -> None:
            rank = self._ranks.get((symbols[place], symbols[after[place]]))
            if rank is None:
                return
            if rank not in places:
                places[rank] = []
                heapq.heappush(waiting, rank)
            places[rank].append(place)

        for place in range(len(symbols) - 1):
            note(place)
        while waiting:
            rank = heapq.heappop(waiting)
            first, second = self._pairs[rank]
            touched = []
            for place in sorted(set(places.pop(rank))):
                following = after[place]
                # Earlier merges may have eaten either half; an eaten place holds no symbol.
                if symbols[place] != first or following >= len(symbols) or symbols[following] != second:
                    continue
                symbols[place], symbols[following] = first + second, ""
                after[place] = after[following]
                if after[place] < len(symbols):
                    before[after[place]] = place
                touched.append(place)
            for place in touched:
                if before[place] >= 0:
                    note(before[place])
                if after[place] < len(symbols):
                    note(place)
        return [symbol for symbol in symbols if symbol]


@lru_cache(maxsize=1)
def byte_symbols() -> dict[int, str]:
    """A printable character for each byte, as GPT-2 and CLIP assign them: itself, or one from U+0100 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@lru_cache(maxsize=1)
def load_byte_pairs() -> BytePairs:
    """Read the vocabulary once; open_clip, and with it torch, is found but not imported.

    Raises:
        ModelError: open_clip is not installed, or its vocabulary file is missing.
    """
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("open_clip is not installed, and with it CLIP's vocabulary: `pip install open_clip_torch`")
    path = Path(spec.submodule_search_locations[0]) / VOCABULARY
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError) as error:
        raise ModelError(f"cannot read CLIP's vocabulary {path} ({error}); reinstall open_clip_torch") from error
    pairs = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    return BytePairs([(first, second) for first, second in pairs])
