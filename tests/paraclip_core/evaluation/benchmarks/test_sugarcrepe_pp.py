"""SugarCrepe++: both scores against a plain loop; without images the text-only one, and this is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import WordEncoder

from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions
from paraclip_core.evaluation.benchmarks import Stored
from paraclip_core.evaluation.pool import ImagePool, stored_pool
from paraclip_core.evaluation.run import prepare

BENCHMARK = BenchmarkOptions(name="scpp", kind="sugarcrepe_pp", path=".")
ROWS = {
    "swap_att": [
        ("red_dog", "a red dog", "dog that is red", "a blue dog"),
        ("old_cat", "old cat", "aged cat", "old cat"),
        ("old_cat", "the cat is old", "old is the cat", "a young tree"),
    ],
    "replace_obj": [("red_dog", "red dog", "one red dog", "red cat"), ("sea", "the sea", "sea", "the land")],
}


def write(folder: Path) -> None:
    for category, rows in ROWS.items():
        names = ("filename", "caption", "caption2", "negative_caption")
        listed = [{"id": n, **dict(zip(names, (f"{row[0]}.jpg", *row[1:]), strict=True))} for n, row in enumerate(rows)]
        (folder / f"{category}.json").write_text(json.dumps(listed))


def expected(encoder: WordEncoder) -> dict[str, float]:
    scores: dict[str, list[tuple[bool, bool]]] = {}
    for category, rows in ROWS.items():
        for image, *texts in rows:
            one, two, wrong = encoder.texts(texts).astype(float)
            shown = encoder.images(Path(), [image])[0].astype(float)
            both = shown @ one > shown @ wrong and shown @ two > shown @ wrong
            alike = one @ two > one @ wrong and one @ two > two @ wrong
            scores.setdefault(category, []).append((both, alike))
    figures = {}
    for place, name in enumerate(("image_to_text", "text_only")):
        means = {category: 100 * np.mean([row[place] for row in rows]) for category, rows in scores.items()}
        figures |= {name: np.mean(list(means.values()))} | {f"{name}@{c}": mean for c, mean in means.items()}
    return figures


def test_with_images_both_scores(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "val2017").mkdir()
    for name in ("red_dog", "old_cat", "sea"):
        (tmp_path / "val2017" / f"{name}.jpg").touch()
    measured = prepare(BENCHMARK, tmp_path).measure(WordEncoder())
    assert measured.metrics == pytest.approx(expected(WordEncoder()))
    assert 0 < measured.metrics["image_to_text"] < 100 and 0 < measured.metrics["text_only"] < 100
    assert "not all there" not in measured.notes["protocol"]


def test_without_images_the_texts_alone(tmp_path: Path) -> None:
    write(tmp_path)
    measured = prepare(BENCHMARK, tmp_path).measure(WordEncoder())
    figures = expected(WordEncoder())
    assert measured.metrics == pytest.approx({name: v for name, v in figures.items() if name.startswith("text_only")})
    assert measured.notes["protocol"].endswith("text only, images are not all there")


def test_images_that_a_run_has_ingested_are_not_encoded_again(tmp_path: Path) -> None:
    write(tmp_path)
    encoder = WordEncoder()

    def pool(ids: Sequence[str]) -> ImagePool:
        features = encoder.texts([name.removesuffix(".jpg").replace("_", " ") for name in ids])
        return stored_pool(list(ids), lambda: features, encoder.tower)

    measured = prepare(BENCHMARK, tmp_path, Stored(Captions([], [], "val"), pool)).measure(encoder)
    assert measured.metrics == pytest.approx(expected(WordEncoder()))
    assert encoder.encoded_images == 0


def test_named_images_must_all_be_there(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "sea.jpg").touch()
    with pytest.raises(BenchmarkError, match=r"pics lacks 2 of 3 images"):
        prepare(BENCHMARK.model_copy(update={"images": "pics"}), tmp_path, images=tmp_path / "pics")
    (tmp_path / "swap_att.json").write_text('[{"filename": "a.jpg", "caption": "a", "caption2": "b"}]')
    with pytest.raises(BenchmarkError, match=r"swap_att\.json, row 1: no field negative_caption"):
        prepare(BENCHMARK, tmp_path)
