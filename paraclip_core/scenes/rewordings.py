"""Human-like rewordings of scenes for evaluation, with words and sentences that base captions lack."""

from __future__ import annotations

import numpy as np

from paraclip_core.scenes.captions import with_article
from paraclip_core.scenes.plan import SceneImage, Thing, generator, pick
from paraclip_core.scenes.vocabulary import COLOURS, INVERSES, KINDS, PLACES, RELATIONS, SIZES, Concept

__all__ = ["reword"]

SAY_OTHERWISE = {"kind": 0.75, "size": 0.8, "colour": 0.12, "relation": 0.6, "place": 0.5}
"""How often each sort of concept is said with another word. People seldom rename a colour."""

TURNED = 0.3
"""Share of pairs that are told from the second thing's side."""

PAIRS = (
    "There is {a} {relation} {b} {place}",
    "{a} is {relation} {b} {place}",
    "{place} we can see {a} {relation} {b}",
    "You can find {a} {place}, {relation} {b}",
    "{a} was placed {relation} {b} {place}",
    "Someone has put {a} {relation} {b} {place}",
)
SINGLES = (
    "There is {a} {place}",
    "{a} is {place}",
    "{place} we can see {a}",
    "You can find {a} {place}",
    "{a} was spotted {place}",
)


def reword(image: SceneImage, seed: int) -> str:
    """A sentence that says what the image's plain caption says, in other words.

    The thing that is named first is always renamed, so that each rewording holds a word that no base caption has.
    """
    rng = generator(seed, 3, image.index)
    scene = image.scene
    relation = RELATIONS[scene.relation] if scene.relation else None
    first, second = scene.first, scene.second
    if second is not None and scene.relation in INVERSES and rng.random() < TURNED:
        first, second, relation = second, first, INVERSES[scene.relation]
    form = pick(rng, PAIRS if second else SINGLES)
    text = form.format(
        a=_name(rng, first, always=True),
        b=_name(rng, second, always=False) if second else "",
        relation=_say(rng, relation, "relation") if relation else "",
        place=_say(rng, PLACES[scene.place], "place"),
    )
    return text[0].upper() + text[1:] + "."


def _name(rng: np.random.Generator, thing: Thing, always: bool) -> str:
    kind, colour = KINDS[thing.kind], _say(rng, COLOURS[thing.colour], "colour")
    noun = _say(rng, kind, "kind", always)
    if kind.person:
        return with_article(f"{noun} {pick(rng, ('dressed in', 'wearing'))} {colour}")
    size = _say(rng, SIZES[thing.size], "size") if thing.size else ""
    return with_article(" ".join(word for word in (size, colour, noun) if word))


def _say(rng: np.random.Generator, concept: Concept, sort: str, always: bool = False) -> str:
    otherwise = rng.random() < SAY_OTHERWISE[sort]
    return pick(rng, concept.others) if otherwise or always else concept.word
