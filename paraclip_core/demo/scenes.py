"""The scenes of the demo's data set, as a pure function of its options, and their captions.

A text encoder trained from scratch knows only words that it has seen. So base captions express each concept with
exactly one word ("dog", "large", "next to"), and the paraphrased queries for evaluation express it with words from
:attr:`Concept.others` that base captions never hold ("puppy", "huge", "beside").

Captions are web-style: a limited base vocabulary, several sentence patterns, and the noise of web captions. Paraphrased
queries are what people might say instead, with words and sentences that base captions lack. Texts need no rendered
images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np

from paraclip_core.captions.options import ScenesOptions

T = TypeVar("T")

SEED = 7
HELD_OUT = 0.25
"""Share of the images that only evaluation sees."""
TYPES_PER_IMAGE = 0.28
"""Scene types among the training images. Each type has three or four images and two caption strings, so 3,000 images
have about 1,250 distinct training captions: enough to learn from, few enough for a small LLM."""

SINGLE = 0.3
"""Share of scenes with one thing only."""

WEIGHTS = {"next to": 30, "above": 14, "under": 14, "on": 14, "in front of": 14, "left of": 7, "right of": 7}


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


@dataclass(frozen=True)
class Place(Concept):
    """A background. `word` and `others` are whole phrases, such as "on the beach"."""

    ground: float
    """Where things stand, as a fraction of the image's height from the top."""


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
"""The same relation from the second thing's side, if there is a word for it."""


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


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers for one purpose (`stream`), independent of other purposes and images."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *stream])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items. Uses only ``rng.random``, whose stream numpy keeps stable across releases."""
    return items[int(rng.random() * len(items))]


def held_out_images(options: ScenesOptions) -> int:
    return min(max(round(options.images * HELD_OUT), 1), options.images - 1)


def plan(options: ScenesOptions) -> Iterator[SceneImage]:
    """Every image of the data set, training images first.

    Training images share scene types. Each held-out image has its own scene of the same concepts, which no training
    image shows.
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


LICENSE = "CC0-1.0"
"""Rendered scenes belong to nobody."""

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

Noise = Callable[[str, int], str]
NOISES: tuple[Noise, ...] = (
    lambda text, number: f"{text} | free image",
    lambda text, number: f"{text} stock photo",
    lambda text, number: f"{text}.jpg",
    lambda text, number: f"IMG_{number} {text}",
    lambda text, number: f"{text} - DSC{number}",
    lambda text, number: f"{text} #{number % 100}",
    lambda text, number: f"{text}!!",
    lambda text, number: f"{text} ...",
    lambda text, number: f"  {text} &amp; more",
    lambda text, number: text.title(),
    lambda text, number: text.upper(),
    lambda text, number: text.capitalize() + ".",
)


def captions(image: SceneImage, seed: int) -> tuple[str, str]:
    """Two captions of an image, 4 to 13 words each.

    They depend on the scene's type alone, noise included. Images of one type share them, so each type has two distinct
    captions. The first caption of a held-out image is its plain one (up to 14 words).
    """
    rng = generator(seed, 2, image.type_id)
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

TURNED = 0.3
"""Share of pairs that are described from the second thing's side."""

REWORDED_PAIRS = (
    "There is {a} {relation} {b} {place}",
    "{a} is {relation} {b} {place}",
    "{place} we can see {a} {relation} {b}",
    "You can find {a} {place}, {relation} {b}",
    "{a} was placed {relation} {b} {place}",
    "Someone has put {a} {relation} {b} {place}",
)
REWORDED_SINGLES = (
    "There is {a} {place}",
    "{a} is {place}",
    "{place} we can see {a}",
    "You can find {a} {place}",
    "{a} was spotted {place}",
)


def reword(image: SceneImage, seed: int) -> str:
    """A sentence that says in other words what the image's plain caption says.

    The first thing is always renamed, so that each paraphrased query holds a word that no base caption has.
    """
    rng = generator(seed, 3, image.index)
    scene = image.scene
    relation = RELATIONS[scene.relation] if scene.relation else None
    first, second = scene.first, scene.second
    if second is not None and scene.relation in INVERSES and rng.random() < TURNED:
        first, second, relation = second, first, INVERSES[scene.relation]
    form = pick(rng, REWORDED_PAIRS if second else REWORDED_SINGLES)
    text = form.format(
        a=_name(rng, first, always=True),
        b=_name(rng, second, always=False) if second else "",
        relation=_say(rng, relation, "relation") if relation else "",
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


def image_name(image: SceneImage) -> str:
    return f"images/{image.image_id}.jpg"


def write_texts(
    options: ScenesOptions, folder: Path, each: Callable[[SceneImage], None] = lambda image: None
) -> dict[str, int]:
    """Write ``captions.jsonl`` and ``paraphrased_queries.jsonl``, and count their contents; `each` gets every image."""
    counts = {"images": 0, "captions": 0, "paraphrased_queries": 0}
    distinct: set[str] = set()
    with (
        (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as texts,
        (folder / "paraphrased_queries.jsonl").open("w", encoding="utf-8", newline="\n") as paraphrased_queries,
    ):
        for image in plan(options):
            each(image)
            about = {"image_id": image.image_id, "image": image_name(image)}
            pair = captions(image, SEED)
            for caption in pair:
                _write(texts, {**about, "caption": caption, "split": image.split, "license": LICENSE})
            if image.split == "train":
                distinct.update(pair)
            else:
                plain, reworded = plain_caption(image.scene), reword(image, SEED)
                query = {"image_id": image.image_id, "caption": plain, "paraphrased_query": reworded}
                _write(paraphrased_queries, query)
                counts["paraphrased_queries"] += 1
            counts["images"] += 1
            counts["captions"] += len(pair)
    return {**counts, "distinct_training_captions": len(distinct)}


def _write(file: TextIO, row: dict[str, str]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
