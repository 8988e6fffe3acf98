"""The texts of the demo's data set, which need no image to be rendered.

Captions are web-style: a limited base vocabulary, several wordings, and the noise that web captions have. Rewordings
are what people might say instead, with words and sentences that base captions lack.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

from paraclip_core.config import ScenesOptions
from paraclip_core.demo.scenes.plan import (
    COLORS,
    INVERSES,
    KINDS,
    PLACES,
    RELATIONS,
    SEED,
    SIZES,
    Concept,
    Scene,
    SceneImage,
    Thing,
    generator,
    pick,
    plan,
)  # fmt: skip

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
            f"{thing.kind} in {thing.color}"
            if KINDS[thing.kind].person
            else " ".join(w for w in (thing.size, thing.color, thing.kind) if w)
        )
        return with_article(words) if articles else words

    return form.format(
        a=name(scene.first),
        b=name(scene.second) if scene.second else "",
        relation=scene.relation or "",
        place=scene.place,
    )


SAY_OTHERWISE = {"kind": 0.75, "size": 0.8, "color": 0.12, "relation": 0.6, "place": 0.5}
"""How often each sort of concept is said with another word. People seldom rename a color."""

TURNED = 0.3
"""Share of pairs that are told from the second thing's side."""

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
    """A sentence that says what the image's plain caption says, in other words.

    The thing that is named first is always renamed, so that each rewording holds a word that no base caption has.
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
    """Name of the image in the tar."""
    return f"images/{image.image_id}.jpg"


def write_texts(
    options: ScenesOptions, folder: Path, each: Callable[[SceneImage], None] = lambda image: None
) -> dict[str, int]:
    """Write ``captions.jsonl`` and ``rewordings.jsonl``; an image takes about 25 µs.

    Args:
        options: which scenes.
        folder: where to; files that are there are written over.
        each: called with every image, in order.

    Returns:
        Counts of images, captions, rewordings and distinct training captions.
    """
    counts = {"images": 0, "captions": 0, "rewordings": 0}
    distinct: set[str] = set()
    with (
        (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as texts,
        (folder / "rewordings.jsonl").open("w", encoding="utf-8", newline="\n") as rewordings,
    ):
        for image in plan(options):
            each(image)
            about = {"image_id": image.image_id, "image": image_name(image)}
            pair = captions(image, SEED)
            for caption in pair:
                # `licence`: another key would give every artifact that is made of the scenes another fingerprint.
                _write(texts, {**about, "caption": caption, "split": image.split, "licence": LICENSE})
            if image.split == "train":
                distinct.update(pair)
            else:
                plain, reworded = plain_caption(image.scene), reword(image, SEED)
                _write(rewordings, {"image_id": image.image_id, "caption": plain, "rewording": reworded})
                counts["rewordings"] += 1
            counts["images"] += 1
            counts["captions"] += len(pair)
    return {**counts, "distinct_training_captions": len(distinct)}


def _write(file: TextIO, row: dict[str, str]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
