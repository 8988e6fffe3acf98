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
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.config import ParaphraseOptions, SamplingOptions, meaning
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.base import Completion, Corpus, EngineContext, EngineFacts, Prompt
from paraclip_core.paraphrase.parse import content_words, jaccard, parse_answer, stem, words

log = logging.getLogger(__name__)

LOOK_UP = 1
"""Raised when a caption may find another rewording than before."""
ANSWERS = 16
"""Answers to a request, at most: as many as `paraphrase.keep` can keep."""
ASSUMED = 0.95
"""Cosine above which images count as near-duplicates where nothing tells."""
SAMPLE = 2000
"""Pairs that tell how much captions agree."""
WINDOW = 200
"""Pairs of neighboring cosines whose captions are compared together."""
MOST_IMAGES = 16
"""Nearest images whose captions are taken."""
AGREEMENT = 0.5
"""How much captions of near-duplicates have to agree in their words: 0 is as those of any two images do, 1 as those of
one image do."""
FEWEST_SIBLINGS = 200
"""Images with several captions, at least, for a threshold to be found."""


class MinedEngine:
    """Answers with captions of the same image and, with `across`, of images whose features are near."""

    name = "mined"

    def __init__(self, options: ParaphraseOptions, context: EngineContext) -> None:
        """Look at nothing yet."""
        self._options, self._corpus, self._device = options.mined, context.corpus, context.device
        self._circles: _Circles | None = None
        self.metrics: dict[str, Any] = {}
        """What was mined, for the manifest."""

    @property
    def facts(self) -> EngineFacts:
        """Captions, which are looked up by their image."""
        across = self._options.across
        return EngineFacts(
            on_device=False,
            shares_cores=True,
            asks=False,
            gates="mined" if across else "off",
            one_process="captions are looked up faster by one process",
            by_image=True,
            inputs=("ingest", "features") if across else ("ingest",),
            look_up={"look_up": LOOK_UP} | (meaning(self._options) if across else {}),
        )

    @property
    def model(self) -> str:
        """``mined:`` and a hash of what is mined and how."""
        facts = self.facts
        parts = [facts.look_up, [self._whole().fingerprint(stage) for stage in facts.inputs]]
        return f"mined:{hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()}"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """The captions around each prompt's image, behind the one that its text names."""
        circles = self._load()
        return [Completion(tuple(circles.answers(*_asked(prompt.text), prompt.step)), 0, 0) for prompt in prompts]

    def close(self) -> None:
        """Forget the captions."""
        self._circles = None

    def _whole(self) -> Corpus:
        if self._corpus is None:
            raise EngineError("paraphrase.engine=mined works in a run alone, whose captions it looks up")
        return self._corpus

    def _load(self) -> _Circles:
        if self._circles is None:
            captions = _Captions.read(self._whole())
            self.metrics = {"images": len(captions.ids), "siblings": int((np.diff(captions.starts) > 1).sum())}
            near = self._neighbors(captions) if self._options.across else None
            self._circles = _Circles(captions, near)
        return self._circles

    def _neighbors(self, captions: _Captions) -> _Near:
        # Imported here, because torch takes seconds and facts need none.
        from paraclip_core.clip.model import pick_device
        from paraclip_core.clip.search import near_images

        options, (matrix, rows) = self._options, self._whole().features(captions.ids)
        images = np.flatnonzero(rows >= 0)
        floor = options.min_cosine if options.min_cosine is not None else _floor(matrix, rows[images])
        pairs = near_images(matrix, rows[images], floor, MOST_IMAGES, pick_device(self._device))
        least, basis = floor, "set"
        if options.min_cosine is None:
            least, basis = calibrated(captions, images[pairs.first()], images[pairs.rows], pairs.cosines)
            pairs = pairs.at_least(least)
        log.info("images with a cosine of at least %.3f are neighbors (%s): %d pairs", least, basis, len(pairs.rows))
        self.metrics |= {
            "min_cosine": round(float(least), 4),
            "min_cosine_basis": basis,
            "images_with_neighbors": int((np.diff(pairs.starts) > 0).sum()),
        }
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
        """The number of an image."""
        hashes, order = self._by_hash
        at = int(np.searchsorted(hashes, _hash(image)))
        while at < len(hashes) and hashes[at] == _hash(image):
            if self.ids[order[at]].as_py() == image:
                return int(order[at])
            at += 1
        return None

    def of(self, image: int) -> list[str]:
        """The captions of one image."""
        start = int(self.starts[image])
        return self.texts.slice(start, int(self.starts[image + 1]) - start).to_pylist()


class _Circles:
    """The captions around each image."""

    def __init__(self, captions: _Captions, near: _Near | None) -> None:
        self._captions, self._near = captions, near

    def answers(self, image_id: str, text: str, step: int) -> list[str]:
        """What stands behind a text in the circle of an image; nothing where it stands alone."""
        image = self._captions.find(image_id)
        circle = {} if image is None else self._circle(image)
        asked = _key(text)
        if asked not in circle or len(circle) == 1:
            return []
        keys = list(circle)
        at = keys.index(asked)
        behind = [*keys[at + 1 :], *keys[:at]]
        if step == 2:
            # The text itself is better than nothing, and than the caption, which is the other one of two.
            behind = [*(behind if len(behind) > 1 else []), asked]
        elif self._near is None and len(behind) > 1:
            # What stands right before a caption has it for its own answer, and no gate looks at that.
            behind = behind[:-1]
        return [circle[key] for key in behind[:ANSWERS]]

    def _circle(self, image: int) -> dict[tuple[str, ...], str]:
        """Words → caption; of captions with the same words the first."""
        circle: dict[tuple[str, ...], str] = {}
        near = [] if self._near is None else self._near.of(image).tolist()
        for number in (image, *near):
            for text in self._captions.of(number):
                if key := _key(text):
                    circle.setdefault(key, text)
        return circle


def calibrated(
    captions: _Captions,
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    cosines: NDArray[np.float32],
) -> tuple[float, str]:
    """The lowest cosine down to which captions of neighbors agree, and what says so.

    The measure is the Jaccard index of the content words of a caption of each; 0 is that of captions of any two images,
    1 that of two captions of one image. Pairs are looked at from the highest cosine down, a window of 200 at a time.
    """
    counts, rng = np.diff(captions.starts), np.random.default_rng(0)
    several = np.flatnonzero(counts > 1)
    if len(several) < FEWEST_SIBLINGS:
        message = "fewer than %d images have several captions, which say how much those of one image agree: %s is %g"
        log.warning(message, FEWEST_SIBLINGS, "paraphrase.mined.min_cosine", ASSUMED)
        return ASSUMED, "assumed"
    siblings = rng.choice(several, min(SAMPLE, len(several)), replace=False)
    same = np.mean([_agreement(*islice(captions.of(int(image)), 2)) for image in siblings])
    strangers = rng.integers(0, len(counts), (SAMPLE, 2))
    apart = np.mean([_agreement(captions.of(int(a))[0], captions.of(int(b))[0]) for a, b in strangers])
    order, least = np.argsort(-cosines, kind="stable"), 2.0
    order = order[one[order] < other[order]]
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        overlaps = [_agreement(captions.of(int(one[pair]))[0], captions.of(int(other[pair]))[0]) for pair in window]
        if np.mean(overlaps) < apart + AGREEMENT * (same - apart):
            break
        least = float(cosines[window[-1]])
    if least > 1:
        log.warning("captions of the nearest images do not agree enough; none is mined")
    return least, "captions"


def _agreement(one: str, other: str) -> float:
    return jaccard(*([stem(word) for word in content_words(words(text))] for text in (one, other)))


def _floor(matrix: Any, rows: NDArray[np.int64]) -> float:
    """A cosine that one of a thousand pairs of any images has: no threshold is lower."""
    if len(rows) < 2:
        return 1.0
    some = np.random.default_rng(0).choice(rows, min(len(rows), 1000), replace=False)
    vectors = np.asarray(matrix[np.sort(some)], np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return float(np.quantile((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)], 0.999))


def _asked(text: str) -> tuple[str, str]:
    """Image and caption of a request; captions have no line break."""
    image, _, caption = text.rpartition("\n")
    return image, caption


def _key(text: str) -> tuple[str, ...]:
    """What makes two captions the same: their words, after they were parsed as every answer is."""
    return tuple(words(parse_answer(text)))


def _hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()))


def _hashes(texts: pa.Array) -> NDArray[np.uint64]:
    return np.fromiter((_hash(text.as_py()) for text in texts), np.uint64, len(texts))
