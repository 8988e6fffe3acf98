"""Which scenes a data set holds: a pure function of its options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from paraclip_core.config import ScenesOptions
from paraclip_core.scenes.vocabulary import KINDS, PLACES, RELATIONS, SIZES

__all__ = ["Scene", "SceneImage", "Thing", "generator", "held_out_images", "pick", "plan"]

T = TypeVar("T")

TYPES_PER_IMAGE = 0.28
"""Scene types among the training images. Each type has three or four images and two caption strings, so that 3,000
images come with about 1,250 distinct training captions: enough to learn from, few enough for a small LLM."""

SINGLE = 0.3
"""Share of scenes with one thing only."""

WEIGHTS = {"next to": 30, "above": 14, "under": 14, "on": 14, "in front of": 14, "left of": 7, "right of": 7}


@dataclass(frozen=True)
class Thing:
    """A thing with its base words."""

    kind: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two things at a place; `relation` is how the first stands to the second."""

    first: Thing
    place: str
    relation: str | None = None
    second: Thing | None = None


@dataclass(frozen=True)
class SceneImage:
    """An image to render. Images of one `type_id` show the same scene and share their captions."""

    index: int
    type_id: int
    split: str
    scene: Scene

    @property
    def image_id(self) -> str:
        """Key of the image."""
        return f"scene-{self.index:06d}"


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one purpose (`stream`), which no other purpose or image moves."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *stream])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items. Only ``rng.random`` is drawn from, whose stream numpy keeps from release to release."""
    return items[int(rng.random() * len(items))]


def held_out_images(options: ScenesOptions) -> int:
    """Number of images that only evaluation sees."""
    return min(max(round(options.images * options.held_out), 1), options.images - 1)


def plan(options: ScenesOptions) -> Iterator[SceneImage]:
    """Every image of the data set, training images first.

    Training images share scene types. Each held-out image has a scene of its own, which no training image shows,
    made of the same concepts.
    """
    held_out = held_out_images(options)
    train = options.images - held_out
    types = max(round(train * TYPES_PER_IMAGE), 1)
    scenes = _distinct_scenes(generator(options.seed, 0))
    shared = [next(scenes) for _ in range(types)]
    for index in range(train):
        yield SceneImage(index, index % types, "train", shared[index % types])
    for index in range(train, options.images):
        yield SceneImage(index, types + index - train, "val", next(scenes))


def _distinct_scenes(rng: np.random.Generator) -> Iterator[Scene]:
    seen: set[Scene] = set()
    while True:
        scene = _scene(rng)
        if scene not in seen:
            seen.add(scene)
            yield scene


def _scene(rng: np.random.Generator) -> Scene:
    place = pick(rng, tuple(PLACES))
    sized = rng.random()
    first = _thing(rng, tuple(KINDS), sized < 0.4)
    if rng.random() < SINGLE:
        return Scene(first, place)
    relation = pick(rng, [name for name in RELATIONS for _ in range(WEIGHTS[name])])
    kinds = [k for k in KINDS if k != first.kind and (relation != "on" or KINDS[k].surface is not None)]
    return Scene(first, place, relation, _thing(rng, kinds, 0.4 <= sized < 0.7))


def _thing(rng: np.random.Generator, kinds: Sequence[str], sized: bool) -> Thing:
    kind = KINDS[pick(rng, kinds)]
    colour, size = pick(rng, kind.colours), pick(rng, tuple(SIZES))
    return Thing(kind.word, colour, size if sized and not kind.person else None)
