"""The scenes of the demo's data set and their captions: equal numbers of images give equal ones.

A text encoder trained from scratch knows only words that it has seen. So base captions express each concept with
exactly one word ("dog", "large", "next to"), and the paraphrased queries for evaluation express it with words from
:attr:`Concept.others` that base captions never hold ("puppy", "huge", "beside").

Captions are web-style: a limited base vocabulary, several sentence patterns, and the noise of web captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SEED = 7
HELD_OUT = 0.25
"""Share of the images that only evaluation sees."""
TYPES_PER_IMAGE = 0.28
"""Scene types among the training images. Each type has three or four images and two caption strings, so 2,000 images
have about 840 distinct training captions: enough to learn from, few enough for a small LLM."""

SINGLE = 0.3
"""Share of scenes with one thing only."""


@dataclass(frozen=True)
class Concept:
    """A concept: its base word or phrase and the words that only paraphrased queries use."""

    word: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Color(Concept):
    """A color and its red, green and blue, 0-255."""

    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Kind(Concept):
    """A kind of thing that can be drawn."""

    colors: tuple[str, ...]
    person: bool = False
    """People wear their color ("woman in red") and have no size."""
    surface: float | None = None
    """Where another thing can stand on it, as a fraction of its height from the top; None: nowhere."""


C = TypeVar("C", bound=Concept)


def by_word(*concepts: C) -> dict[str, C]:
    return {concept.word: concept for concept in concepts}


ALL = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
FUR = ("brown", "black", "white", "orange")

COLORS = by_word(
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

SIZES = by_word(Concept("large", ("big", "huge", "giant")), Concept("small", ("tiny", "little", "miniature")))

KINDS = by_word(
    Kind("dog", ("puppy", "hound", "canine"), FUR),
    Kind("rabbit", ("bunny", "hare"), FUR),
    Kind("woman", ("lady", "female"), ALL, person=True),
    Kind("girl", ("child", "kid", "schoolgirl"), ALL, person=True),
    Kind("car", ("vehicle", "sedan", "automobile"), ALL, surface=0.35),
    Kind("truck", ("pickup", "lorry"), ALL, surface=0.27),
    Kind("bicycle", ("bike", "cycle"), ALL),
    Kind("plane", ("airplane", "aircraft", "jet"), ALL),
    Kind("flower", ("blossom", "bloom"), ALL),
    Kind("lamp", ("lantern", "light"), ALL),
    Kind("bag", ("purse", "handbag"), ALL),
    Kind("table", ("desk", "counter"), ALL, surface=0.46),
)

PLACES = by_word(
    Concept("on the beach", ("at the seashore", "by the shore", "on the sand")),
    Concept("on the street", ("on the road", "in the city", "along an avenue")),
    Concept("in the snow", ("on a snowy day", "in winter", "on frosty ground")),
    Concept("at night", ("after dark", "under the moon", "in the moonlight")),
)
"""Backgrounds, as whole phrases."""

RELATIONS = by_word(
    Concept("next to", ("beside", "close to", "near", "alongside")),
    Concept("above", ("over", "higher than")),
    Concept("under", ("below", "beneath", "underneath")),
    Concept("on", ("on top of", "atop")),
)


@dataclass(frozen=True)
class Thing:
    """A thing, described by base words."""

    kind: str
    color: str
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two things at a place; `relation` is the first's position relative to the second."""

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
        return f"scene-{self.index:06d}"


def generator(*stream: int) -> np.random.Generator:
    """The random numbers for one purpose (`stream`), independent of other purposes and images."""
    return np.random.default_rng([SEED, *stream])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items. Uses only ``rng.random``, whose stream numpy keeps stable across releases."""
    return items[int(rng.random() * len(items))]


def plan(images: int) -> Iterator[SceneImage]:
    """Every image of the data set, training images first.

    Training images share scene types. Each held-out image has its own scene of the same concepts, which no training
    image shows.
    """
    train = images - round(images * HELD_OUT)
    types = round(train * TYPES_PER_IMAGE)
    rng, distinct = generator(0), dict[Scene, None]()
    while len(distinct) < types + images - train:
        distinct.setdefault(_scene(rng))
    scenes = list(distinct)
    for index in range(images):
        split, type_id = ("train", index % types) if index < train else ("val", types + index - train)
        yield SceneImage(index, type_id, split, scenes[type_id])


def _scene(rng: np.random.Generator) -> Scene:
    place = pick(rng, tuple(PLACES))
    sized = rng.random()
    first = _thing(rng, tuple(KINDS), sized < 0.4)
    if rng.random() < SINGLE:
        return Scene(first, place)
    relation = pick(rng, tuple(RELATIONS))
    kinds = [k for k in KINDS if k != first.kind and (relation != "on" or KINDS[k].surface is not None)]
    return Scene(first, place, relation, _thing(rng, kinds, 0.4 <= sized < 0.7))


def _thing(rng: np.random.Generator, kinds: Sequence[str], sized: bool) -> Thing:
    kind = KINDS[pick(rng, kinds)]
    color, size = pick(rng, kind.colors), pick(rng, tuple(SIZES))
    return Thing(kind.word, color, size if sized and not kind.person else None)


MIN_WORDS = 4
MAX_WORDS = 13

NOISY = 0.4
"""Share of captions with web noise."""

PAIRS = (
    "{a} {relation} {b} {place}",
    "{a} {relation} {b} {place}",
    "{a} {place} {relation} {b}",
    "{place}, {a} {relation} {b}",
    "photo of {a} {relation} {b} {place}",
    "{a} {relation} {b}",
    "{a} with {b} {place}",
    "{a} and {b} {place}",
)
SINGLES = ("{a} {place}", "{a} {place}", "{place}, {a}", "photo of {a} {place}", "this is {a} {place}")

NOISES: tuple[Callable[[str, int], str], ...] = (
    lambda text, number: f"{text} | free image",
    lambda text, number: f"{text} stock photo",
    lambda text, number: f"{text}.jpg",
    lambda text, number: f"IMG_{number} {text}",
    lambda text, number: f"{text} - DSC{number}",
    lambda text, number: f"  {text} &amp; more",
    lambda text, number: text.title(),
    lambda text, number: text.upper(),
    lambda text, number: text.capitalize() + ".",
)


def captions(image: SceneImage) -> tuple[str, str]:
    """Two captions of an image, 4 to 13 words each.

    They depend on the scene's type alone, noise included. Images of one type share them, so each type has two distinct
    captions. The first caption of a held-out image is its plain one (up to 14 words).
    """
    rng = generator(2, image.type_id)
    first = _caption(image.scene, rng) if image.split == "train" else plain_caption(image.scene)
    second = _caption(image.scene, rng)
    while second == first:
        second = _caption(image.scene, rng)
    return first, second


def plain_caption(scene: Scene) -> str:
    """The scene in full, in base words and without noise."""
    return _fill(PAIRS[0] if scene.second else SINGLES[0], scene, articles=True)


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    while True:
        form = pick(rng, PAIRS if scene.second else SINGLES)
        text = _fill(form, scene, articles=rng.random() < 0.6)
        noisy, number = rng.random() < NOISY, 1000 + int(rng.random() * 9000)
        if noisy:
            text = pick(rng, NOISES)(text, number)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return text


def _fill(form: str, scene: Scene, articles: bool) -> str:
    def name(thing: Thing) -> str:
        words = " ".join(filter(None, (thing.size, thing.color, thing.kind)))
        if KINDS[thing.kind].person:
            words = f"{thing.kind} in {thing.color}"
        return with_article(words) if articles else words

    second = name(scene.second) if scene.second else ""
    return form.format(a=name(scene.first), b=second, relation=scene.relation or "", place=scene.place)


SAY_OTHERWISE = {"kind": 0.75, "size": 0.8, "color": 0.12, "relation": 0.6, "place": 0.5}
"""How often each sort of concept is expressed by another word. People seldom rename a color."""

REWORDED_PAIRS = (
    "There is {a} {relation} {b} {place}",
    "{a} is {relation} {b} {place}",
    "{place} we can see {a} {relation} {b}",
    "{a} was placed {relation} {b} {place}",
    "Someone has put {a} {relation} {b} {place}",
)
REWORDED_SINGLES = ("There is {a} {place}", "{a} is {place}", "{place} we can see {a}", "{a} was spotted {place}")


def reword(image: SceneImage) -> str:
    """A sentence that says in other words what the image's plain caption says.

    The first thing is always renamed, so that each paraphrased query holds a word that no base caption has.
    """
    rng, scene = generator(3, image.index), image.scene
    form = pick(rng, REWORDED_PAIRS if scene.second else REWORDED_SINGLES)
    text = form.format(
        a=_name(rng, scene.first, always=True),
        b=_name(rng, scene.second, always=False) if scene.second else "",
        relation=_say(rng, RELATIONS[scene.relation], "relation") if scene.relation else "",
        place=_say(rng, PLACES[scene.place], "place"),
    )
    return text[0].upper() + text[1:] + "."


def _name(rng: np.random.Generator, thing: Thing, always: bool) -> str:
    kind, color = KINDS[thing.kind], _say(rng, COLORS[thing.color], "color")
    noun = _say(rng, kind, "kind", always)
    if kind.person:
        return with_article(f"{noun} {pick(rng, ('dressed in', 'wearing'))} {color}")
    size = _say(rng, SIZES[thing.size], "size") if thing.size else ""
    return with_article(" ".join(word for word in (size, color, noun) if word))


def _say(rng: np.random.Generator, concept: Concept, sort: str, always: bool = False) -> str:
    otherwise = rng.random() < SAY_OTHERWISE[sort]
    return pick(rng, concept.others) if otherwise or always else concept.word
