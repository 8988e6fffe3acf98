"""Rewordings that the data already holds: other captions of the same image, and of near-duplicate images.

Nothing is asked of a model and nothing is paid. A request is a caption with its image. The captions around an image are
a circle: its own, sorted by a hash, then those of its neighbors, the nearest first. Step 1 answers with the captions
behind the one that was asked about, step 2 with those behind paraphrase 1, and neither gives the caption back. Where an
image has two captions only, step 2 gives paraphrase 1 again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import Completion, Corpus, EngineContext, EngineFacts, Prompt
from paraclip_core.paraphrase.texts import parse_answer, words

log = logging.getLogger(__name__)

LOOK_UP = 1
"""Raised when a caption may find another rewording than before."""
ANSWERS = 16
"""Answers to a request, at most: as many as `paraphrase.keep` can keep."""
MOST_IMAGES = 16
"""Nearest images whose captions are taken."""


class MinedEngine:
    """Answers with captions of the same image and, with `min_cosine`, of images whose features are near."""

    name = "mined"

    def __init__(self, options: ParaphraseOptions, context: EngineContext) -> None:
        self._least, self._corpus, self._device = options.mined.min_cosine, context.corpus, context.device
        self._loaded: tuple[_Captions, _Near | None] | None = None

    @property
    def facts(self) -> EngineFacts:
        across = self._least is not None
        return EngineFacts(
            on_device=False,
            shares_cores=True,
            asks=False,
            gates="mined" if across else "off",
            by_image=True,
            inputs=("ingest", "features") if across else ("ingest",),
            look_up={"look_up": LOOK_UP} | ({"min_cosine": self._least} if across else {}),
        )

    @property
    def model(self) -> str:
        """``mined:`` and a hash of what is mined and how."""
        facts = self.facts
        parts = [facts.look_up, [self._whole().fingerprint(stage) for stage in facts.inputs]]
        return f"mined:{hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()}"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """The captions around each prompt's image, behind the one that its text names."""
        if self._loaded is None:
            captions = _Captions.read(self._whole())
            self._loaded = captions, None if self._least is None else self._neighbors(captions, self._least)
        captions, near = self._loaded
        completions = []
        for prompt in prompts:
            # Captions have no line break.
            image, _, text = prompt.text.rpartition("\n")
            completions.append(Completion(tuple(_behind(captions, near, image, text, prompt.step)), 0, 0))
        return completions

    def close(self) -> None:
        self._loaded = None

    def _whole(self) -> Corpus:
        if self._corpus is None:
            raise EngineError("paraphrase.engine=mined works in a run alone, whose captions it looks up")
        return self._corpus

    def _neighbors(self, captions: _Captions, least: float) -> _Near:
        # Imported here, because torch takes seconds and facts need none.
        from paraclip_core.clip.model import pick_device
        from paraclip_core.clip.search import near_images

        matrix, rows = self._whole().features(captions.ids)
        images = np.flatnonzero(rows >= 0)
        pairs = near_images(matrix, rows[images], least, MOST_IMAGES, pick_device(self._device))
        log.info("images with a cosine of at least %.3f are neighbors: %d pairs", least, len(pairs.rows))
        place = np.full(len(rows), -1, np.int64)
        place[images] = np.arange(len(images))
        return _Near(place, pairs.starts, images[pairs.rows].astype(np.int32))


@dataclass(frozen=True)
class _Near:
    place: NDArray[np.int64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]

    def of(self, image: int) -> NDArray[np.int32]:
        """Numbers of the images near one, the nearest first."""
        at = self.place[image]
        return self.rows[self.starts[at] : self.starts[at + 1]] if at >= 0 else self.rows[:0]


@dataclass(frozen=True)
class _Captions:
    """Training captions by image: some 100 bytes for each besides its text."""

    ids: pa.LargeStringArray
    """The images."""
    texts: pa.LargeStringArray
    """Captions image by image, those of one by a hash."""
    starts: NDArray[np.int64]
    """Where the captions of each image begin, and the number of all."""

    @classmethod
    def read(cls, corpus: Corpus) -> _Captions:
        """Read the training captions that have an image."""
        schema = pa.schema([("image_id", pa.large_string()), ("caption", pa.large_string())])
        table = pa.Table.from_batches((batch.cast(schema) for batch in corpus.captions(schema.names)), schema)
        table = table.filter(table["image_id"].is_valid()).combine_chunks()
        coded = pa.chunked_array(table["image_id"].dictionary_encode()).combine_chunks()
        images = coded.indices.to_numpy()
        texts = table["caption"].combine_chunks() if table.num_rows else pa.array([], pa.large_string())
        order = np.lexsort((_hashes(texts), images))
        starts = np.searchsorted(images[order], np.arange(len(coded.dictionary) + 1))
        return cls(coded.dictionary, texts.take(pa.array(order)), starts)

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        hashes = _hashes(self.ids)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def find(self, image: str) -> int | None:
        hashes, order = self._by_hash
        at = int(np.searchsorted(hashes, _hash(image)))
        while at < len(hashes) and hashes[at] == _hash(image):
            if self.ids[order[at]].as_py() == image:
                return int(order[at])
            at += 1
        return None

    def of(self, image: int) -> list[str]:
        start = int(self.starts[image])
        return self.texts.slice(start, int(self.starts[image + 1]) - start).to_pylist()


def _behind(captions: _Captions, near: _Near | None, image_id: str, text: str, step: int) -> list[str]:
    """What stands behind a text in the circle of an image; nothing where it stands alone."""
    image, key = captions.find(image_id), _key(text)
    circle: dict[tuple[str, ...], str] = {}
    if image is not None:
        # Of captions with the same words the first.
        for number in (image, *([] if near is None else near.of(image).tolist())):
            for caption in captions.of(number):
                if words_of := _key(caption):
                    circle.setdefault(words_of, caption)
    if key not in circle or len(circle) == 1:
        return []
    keys = list(circle)
    at = keys.index(key)
    behind = [*keys[at + 1 :], *keys[:at]]
    if step == 2:
        # The text itself is better than nothing, and than the caption, which is the other one of two.
        behind = [*(behind if len(behind) > 1 else []), key]
    elif near is None and len(behind) > 1:
        # What stands right before a caption has it for its own answer, and no gate looks at that.
        behind = behind[:-1]
    return [circle[key] for key in behind[:ANSWERS]]


def _key(text: str) -> tuple[str, ...]:
    """What makes two captions the same: their words, after they were parsed as every answer is."""
    return tuple(words(parse_answer(text)))


def _hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()))


def _hashes(texts: pa.Array) -> NDArray[np.uint64]:
    return np.fromiter((_hash(text.as_py()) for text in texts), np.uint64, len(texts))
