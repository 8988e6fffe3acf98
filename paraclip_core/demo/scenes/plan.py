"""Which scenes a data set holds, as a pure function of its options, and the words for what they show.

A text tower that is trained from nothing knows only words that it has seen. So base captions say each concept with
exactly one word ("dog", "large", "next to"), and the rewordings that evaluation uses say it with words from
:attr:`Concept.others` that base captions never hold ("puppy", "huge", "beside").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from paraclip_core.config import ScenesOptions

T = TypeVar("T")

SEED = 7
HELD_OUT = 0.25
"""Share of the images that only evaluation sees."""
TYPES_PER_IMAGE = 0.28
"""Scene types among the training images. Each type has three or four images and two caption strings, so that 3,000
images come with about 1,250 distinct training captions: enough to learn from, few enough for a small LLM."""

SINGLE = 0.3
"""Share of scenes with one thing only."""

WEIGHTS = {"next to": 30, "above": 14, "under": 14, "on": 14, "in front of": 14, "left of": 7, "right of": 7}


@dataclass(frozen=True)
class Concept:
    """A concept: its base word or phrase and the words that only rewordings use."""

    word: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Color(Concept):
    """A color and its red, green and blue, 0-255."""

    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Kind(Concept):
    """A kind of thing that is drawn."""

    colors: tuple[str, ...]
    person: bool = False
    """People wear their color ("woman in red") and have no size."""
    surface: float | None = None
    """Where another thing can stand on it, as a share of its height from the top; None: nowhere."""


@dataclass(frozen=True)
class Place(Concept):
    """A background. `word` and `others` are whole phrases, such as "on the beach"."""

    ground: float
    """Where things stand, as a share of the image's height from the top."""


ALL = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
PAINT = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
FUR = ("brown", "black", "white", "orange")

COLORS: dict[str, Color] = {
    c.word: c
    for c in (
        Color("red", ("scarlet", "crimson"), (214, 38, 38)),
        Color("orange", ("amber", "tangerine"), (245, 140, 28)),
        Color("yellow", ("golden", "lemon"), (250, 216, 50)),
        Color("green", ("emerald", "lime"), (46, 160, 67)),
        Color("blue", ("azure", "navy"), (38, 98, 217)),
        Color("purple", ("violet", "lilac"), (132, 60, 184)),
        Color("pink", ("rosy", "magenta"), (246, 132, 184)),
        Color("brown", ("chestnut", "tan"), (134, 84, 44)),
        Color("black", ("dark", "ebony"), (36, 36, 40)),
        Color("white", ("pale", "ivory"), (246, 246, 246)),
    )
}

SIZES: dict[str, Concept] = {
    c.word: c for c in (Concept("large", ("big", "huge", "giant")), Concept("small", ("tiny", "little", "miniature")))
}

KINDS: dict[str, Kind] = {
    k.word: k
    for k in (
        Kind("dog", ("puppy", "hound", "canine"), FUR),
        Kind("cat", ("kitten", "kitty", "feline"), FUR),
        Kind("bird", ("songbird", "sparrow", "parrot"), ("red", "blue", "yellow", "green", "pink", "white", "black")),
        Kind("fish", ("trout", "goldfish"), BRIGHT),
        Kind("horse", ("pony", "stallion", "mare"), ("brown", "black", "white"), surface=0.4),
        Kind("rabbit", ("bunny", "hare"), ("brown", "black", "white")),
        Kind("man", ("guy", "gentleman", "fellow"), ALL, person=True),
        Kind("woman", ("lady", "female"), ALL, person=True),
        Kind("boy", ("lad", "kid", "youngster"), BRIGHT, person=True),
        Kind("girl", ("lass", "child", "schoolgirl"), BRIGHT, person=True),
        Kind("car", ("automobile", "vehicle", "sedan"), PAINT, surface=0.35),
        Kind("truck", ("lorry", "pickup"), PAINT, surface=0.27),
        Kind("bus", ("coach", "minibus"), PAINT, surface=0.29),
        Kind("boat", ("ship", "sailboat", "vessel"), PAINT),
        Kind("bicycle", ("bike", "cycle"), PAINT),
        Kind("plane", ("airplane", "aircraft", "jet"), PAINT),
        Kind("house", ("home", "cottage", "building"), ("red", "yellow", "blue", "pink", "brown", "white", "green")),
        Kind("tree", ("oak", "sapling"), ("green", "orange", "yellow", "red", "pink")),
        Kind("ball", ("sphere", "globe"), BRIGHT),
        Kind("hat", ("cap", "fedora"), ALL),
        Kind("umbrella", ("parasol", "brolly"), ALL),
        Kind("flower", ("blossom", "bloom"), ("red", "orange", "yellow", "blue", "purple", "pink", "white")),
        Kind("chair", ("seat", "stool"), ALL, surface=0.6),
        Kind("table", ("desk", "counter"), ALL, surface=0.46),
        Kind("cup", ("mug", "teacup"), ALL),
        Kind("book", ("novel", "notebook"), ALL),
        Kind("lamp", ("lantern", "light"), BRIGHT),
        Kind("box", ("crate", "parcel", "package"), ALL, surface=0.28),
        Kind("clock", ("timepiece", "watch"), BRIGHT),
        Kind("bag", ("purse", "handbag"), ALL),
    )
}

PLACES: dict[str, Place] = {
    p.word: p
    for p in (
        Place("on the beach", ("at the seashore", "by the shore", "on the sand"), 0.90),
        Place("in a field", ("in a meadow", "on the grass", "on a lawn"), 0.90),
        Place("on the street", ("on the road", "in the city", "along an avenue"), 0.88),
        Place("in the snow", ("on a snowy day", "in winter", "on frosty ground"), 0.90),
        Place("in a room", ("indoors", "inside", "on the floor"), 0.90),
        Place("at night", ("after dark", "under the moon", "in the moonlight"), 0.90),
        Place("in the sea", ("in the ocean", "on the water", "among the waves"), 0.86),
        Place("in the mountains", ("up in the hills", "near high peaks", "in the highlands"), 0.90),
    )
}

RELATIONS: dict[str, Concept] = {
    c.word: c
    for c in (
        Concept("next to", ("beside", "close to", "near", "alongside")),
        Concept("above", ("over", "higher than")),
        Concept("under", ("below", "beneath", "underneath")),
        Concept("on", ("on top of", "atop")),
        Concept("in front of", ("ahead of", "before")),
        Concept("left of", ("on the left side of", "on the left-hand side of")),
        Concept("right of", ("on the right side of", "on the right-hand side of")),
    )
}

INVERSES: dict[str, Concept] = {
    "next to": RELATIONS["next to"],
    "above": RELATIONS["under"],
    "under": RELATIONS["above"],
    "in front of": Concept("behind", ("behind", "in back of")),
    "left of": RELATIONS["right of"],
    "right of": RELATIONS["left of"],
}
"""The same relation said from the second thing's side, where there is a word for it."""


@dataclass(frozen=True)
class Thing:
    """A thing with its base words."""

    kind: str
    color: str
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
    return min(max(round(options.images * HELD_OUT), 1), options.images - 1)


def plan(options: ScenesOptions) -> Iterator[SceneImage]:
    """Every image of the data set, training images first.

    Training images share scene types. Each held-out image has a scene of its own, which no training image shows,
    made of the same concepts.
    """
    held_out = held_out_images(options)
    train = options.images - held_out
    types = max(round(train * TYPES_PER_IMAGE), 1)
    scenes = _distinct_scenes(generator(SEED, 0))
    shared = [next(scenes) for _ in range(types)]
    for index in range(train):
        yield SceneImage(index, index % types, "train", shared[index % types])
    for index in range(train, options.images):
        yield SceneImage(index, types + index - train, "val", next(scenes))


def _distinct_scenes(rng: np.random.Generator) -> Iterator[Scene]:
    earlier: set[Scene] = set()
    while True:
        scene = _scene(rng)
        if scene not in earlier:
            earlier.add(scene)
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
    color, size = pick(rng, kind.colors), pick(rng, tuple(SIZES))
    return Thing(kind.word, color, size if sized and not kind.person else None)
