"""What a scene can hold, the one base word for each concept, and the other words people use for it.

A text tower that is trained from nothing knows only words that it has seen. So base captions say each concept with
exactly one word ("dog", "large", "next to"), and the rewordings that evaluation uses say it with words from
:attr:`Concept.others` that base captions never hold ("puppy", "huge", "beside").
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COLOURS", "INVERSES", "KINDS", "PLACES", "RELATIONS", "SIZES", "Colour", "Concept", "Kind", "Place"]


@dataclass(frozen=True)
class Concept:
    """A concept: its base word or phrase and the words that only rewordings use."""

    word: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Colour(Concept):
    """A colour and its red, green and blue, 0-255."""

    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Kind(Concept):
    """A kind of thing that is drawn."""

    colours: tuple[str, ...]
    person: bool = False
    """People wear their colour ("woman in red") and have no size."""
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

COLOURS: dict[str, Colour] = {
    c.word: c
    for c in (
        Colour("red", ("scarlet", "crimson"), (214, 38, 38)),
        Colour("orange", ("amber", "tangerine"), (245, 140, 28)),
        Colour("yellow", ("golden", "lemon"), (250, 216, 50)),
        Colour("green", ("emerald", "lime"), (46, 160, 67)),
        Colour("blue", ("azure", "navy"), (38, 98, 217)),
        Colour("purple", ("violet", "lilac"), (132, 60, 184)),
        Colour("pink", ("rosy", "magenta"), (246, 132, 184)),
        Colour("brown", ("chestnut", "tan"), (134, 84, 44)),
        Colour("black", ("dark", "ebony"), (36, 36, 40)),
        Colour("white", ("pale", "ivory"), (246, 246, 246)),
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
