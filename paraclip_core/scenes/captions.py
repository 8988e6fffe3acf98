"""Web-style captions of scenes: a limited base vocabulary, several wordings, and the noise that web captions have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from paraclip_core.scenes.plan import Scene, SceneImage, Thing, generator, pick
from paraclip_core.scenes.vocabulary import KINDS

__all__ = ["MAX_WORDS", "MIN_WORDS", "captions", "plain_caption", "with_article"]

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

    They depend on the scene's type alone, noise included: images of one type share them, so the number of distinct
    captions stays two for each type. The first caption of a held-out image is its plain one (up to 14 words).
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
    """The phrase after its "a" or "an"."""
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
        words = (
            f"{thing.kind} in {thing.colour}"
            if KINDS[thing.kind].person
            else " ".join(w for w in (thing.size, thing.colour, thing.kind) if w)
        )
        return with_article(words) if articles else words

    return form.format(
        a=name(scene.first),
        b=name(scene.second) if scene.second else "",
        relation=scene.relation or "",
        place=scene.place,
    )
