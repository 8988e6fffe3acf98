"""Picking the right text: each kind's figures against a plain loop, the authors' numbers, formats and wrong files."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paraclip_core.clip.encode import encode_images
from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions, ImagePool, Measured, stored_pool
from paraclip_core.evaluation.benchmarks import Stored
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.metrics import macro_weights
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import prepare, source_files
from tests.kit.fake_encoder import WordEncoder

WORDS = ("dog", "cat", "horse", "tree", "man", "car", "grass", "hat")
CREPE = {
    "swap_att": [
        ("red_dog", " red dog ", "blue dog"),
        ("old_cat", "new cat", "old cat"),
        ("old_cat", *["old cat"] * 2),
    ],
    "add_obj": [("red_dog", " red dog ", "blue dog"), ("sea", "the sea", "the land")],
}
PLUS = {
    "swap_att": [
        ("red_dog", "a red dog", "dog that is red", "a blue dog"),
        ("old_cat", "old cat", "aged cat", "old cat"),
        ("old_cat", "the cat is old", "old is the cat", "a young tree"),
    ],
    "replace_obj": [("red_dog", "red dog", "one red dog", "red cat"), ("sea", "the sea", "sea", "the land")],
}


def measured(kind: str, path: Path, encoder: Any = None, stored: Stored | None = None, **options: Any) -> Measured:
    return prepare(BenchmarkOptions(name="x", kind=kind, path=".", **options), path, stored).measure(
        encoder or WordEncoder()
    )


def touch(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def crepe(folder: Path, categories: dict[str, list[Any]]) -> None:
    names = ("filename", "caption", *(["caption2"] if categories is PLUS else []), "negative_caption")
    for category, rows in categories.items():
        listed = [dict(zip(names, (f"{row[0]}.jpg", *row[1:]), strict=True)) for row in rows]
        value = listed if categories is PLUS else {str(number): row for number, row in enumerate(listed)}
        (folder / f"{category}.json").write_text(json.dumps(value))


def expected(categories: dict[str, list[Any]], names: Sequence[str]) -> dict[str, float]:
    """Figures of both SugarCrepes by a plain loop."""
    scores: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    encoder = WordEncoder()
    for category, rows in categories.items():
        for image, *texts in rows:
            *right, wrong = encoder.texts(texts).astype(float)
            shown = encoder.images(Path(), [image])[0].astype(float)
            alike = all(right[0] @ right[-1] > one @ wrong for one in right)
            scores[category].append((all(shown @ one > shown @ wrong for one in right), alike))
    figures = {}
    for place, name in enumerate(names):
        means = {category: 100 * np.mean([row[place] for row in rows]) for category, rows in scores.items()}
        figures |= {name: np.mean(list(means.values()))} | {f"{name}@{c}": mean for c, mean in means.items()}
    return figures


def aro(folder: Path, kind: str, count: int = 120) -> list[dict[str, Any]]:
    """A small set in the published format, with empty files for images."""
    draw, rows = random.Random(kind), []
    for number in range(count):
        one, other = draw.sample(WORDS, 2)
        box = {"bbox_x": draw.randrange(9), "bbox_y": 0, "bbox_w": draw.randrange(1, 9), "bbox_h": 7}
        texts = {"true_caption": f"the {one} on the {other}", "false_caption": f"the {other} under the {one} "}
        pair = draw.choice([["red", "old"], ["new", "big"], ["wet", "dry"]]) if number > 9 else ["a", "b"]
        relation = {"relation_name": draw.choice(["on", "under", "near", "behind"])}
        group = relation if kind == "vg_relation" else {"attributes": pair}
        rows.append({"image_path": f"{one}_{draw.choice(WORDS)}.jpg", **box, **texts, **group})
    touch(folder / "images", [row["image_path"] for row in rows])
    (folder / f"visual_genome_{kind.removeprefix('vg_')}.json").write_text(json.dumps(rows))
    return rows


def test_the_real_sugarcrepe_without_images(data_root: Path) -> None:
    folder, encoder, means = data_root / "sugarcrepe", WordEncoder(), {}
    for file in folder.glob("*.json"):
        rows = json.loads(file.read_text("utf-8")).values()
        a, b = (encoder.texts([row[name].strip() for row in rows]) for name in ("caption", "negative_caption"))
        means[f"text_only_closeness@{file.stem}"] = 100 * (a * b).sum(1).mean()
    whole = measured("sugarcrepe", folder)
    assert len(means) == 7
    assert whole.metrics == pytest.approx({"text_only_closeness": np.mean(list(means.values())), **means}, rel=1e-5)
    assert (whole.notes["rows"], whole.notes["duplicate_rows"], whole.notes["images_found"]) == (7511, 6, 0)


def test_sugarcrepe_with_images(tmp_path: Path) -> None:
    crepe(tmp_path, CREPE)
    touch(tmp_path / "val2017", ["red_dog.jpg", "sea.jpg"])
    assert measured("sugarcrepe", tmp_path).notes["images_found"] == 2
    assert all(name.startswith("text_only_closeness") for name in measured("sugarcrepe", tmp_path).metrics)
    touch(tmp_path / "val2017", ["old_cat.jpg"])
    outcome = measured("sugarcrepe", tmp_path, encoder := WordEncoder())
    assert outcome.metrics == pytest.approx(expected(CREPE, ["accuracy"]))
    assert outcome.metrics == pytest.approx(
        {"accuracy": 200 / 3, "accuracy@add_obj": 100, "accuracy@swap_att": 100 / 3}
    )
    assert encoder.encoded_images == 3


@pytest.mark.parametrize("path", ["data", "data/swap_att.json"])
def test_cocos_images_lie_beside_the_folder_of_texts(
    tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    crepe(tmp_path / "data", CREPE)
    alone = measured("sugarcrepe", tmp_path / path)
    assert alone.notes["images_found"] == 0 and "text_only_closeness" in alone.metrics
    assert "only texts are measured; put COCO's val2017 beside it" in caplog.text
    caplog.clear()
    touch(tmp_path / "val2017", ["red_dog.jpg", "old_cat.jpg", "sea.jpg"])
    beside = measured("sugarcrepe", tmp_path / path)
    assert beside.notes["images_found"] == beside.notes["images"] and "accuracy" in beside.metrics
    assert caplog.text == ""
    assert {*(tmp_path / "val2017").iterdir()} < {*source_files("sugarcrepe", tmp_path / path)}


def test_sugarcrepe_plus_plus(tmp_path: Path) -> None:
    crepe(tmp_path, PLUS)
    figures = expected(PLUS, ["image_to_text", "text_only"])
    alone = measured("sugarcrepe_pp", tmp_path)
    assert alone.metrics == pytest.approx({name: v for name, v in figures.items() if name.startswith("text_only")})
    assert alone.notes["protocol"].endswith("text only, images are not all there")
    encoder = WordEncoder()

    def pool(ids: Sequence[str]) -> ImagePool:
        features = encoder.texts([name.removesuffix(".jpg").replace("_", " ") for name in ids])
        return stored_pool(list(ids), lambda: features, encoder.image_encoder_hash)

    ingested = measured("sugarcrepe_pp", tmp_path, encoder, Stored(Captions([], [], "val"), pool))
    assert ingested.metrics == pytest.approx(figures) and encoder.encoded_images == 0
    touch(tmp_path / "val2017", ["red_dog.jpg", "old_cat.jpg", "sea.jpg"])
    beside = measured("sugarcrepe_pp", tmp_path)
    assert beside.metrics == pytest.approx(figures) and "not all there" not in beside.notes["protocol"]
    assert 0 < figures["image_to_text"] < 100 and 0 < figures["text_only"] < 100


@pytest.mark.parametrize("kind", ["vg_relation", "vg_attribution"])
def test_both_accuracies_of_aro(tmp_path: Path, kind: str) -> None:
    rows, encoder = aro(tmp_path, kind), WordEncoder()
    outcome = measured(kind, tmp_path, encoder)
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        box = (row["bbox_x"], 0, row["bbox_x"] + row["bbox_w"], 7)
        image = encoder.images(tmp_path, [row["image_path"]], [box])[0].astype(float)
        true, false = encoder.texts([row["true_caption"].strip(), row["false_caption"].strip()]).astype(float)
        outcomes[row.get("relation_name") or "_".join(row["attributes"])].append(image @ true > image @ false)
    counted = {
        name: hits for name, hits in outcomes.items() if name != "near" and len(hits) >= (25 if "_" in name else 1)
    }
    assert len(counted) == 3 and len(outcomes) == 4
    assert outcome.metrics["macro_accuracy"] == pytest.approx(
        100 * np.mean([np.mean(hits) for hits in counted.values()])
    )
    assert outcome.metrics["micro_accuracy"] == pytest.approx(
        100 * np.mean([hit for h in outcomes.values() for hit in h])
    )
    assert (outcome.notes["groups"], outcome.notes["groups_in_macro"], outcome.notes["cases"]) == (4, 3, 120)
    assert encoder.encoded_images < 2 * len(rows)  # equal parts are encoded once, beside the loop's own


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1))
def test_weights_turn_a_mean_into_the_mean_of_groups(rows: list[tuple[str, bool]]) -> None:
    groups, hits = [group for group, _ in rows], np.array([hit for _, hit in rows], float)
    means = [np.mean([hit for of, hit in rows if of == group]) for group in set(groups)]
    assert (hits * macro_weights(groups)).mean() == pytest.approx(np.mean(means))


def test_a_real_encoder_sees_the_part_alone(tmp_path: Path, small_model: tuple[ClipModel, str]) -> None:
    clip, folder = small_model
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    part = ModelEncoder(folder, "cpu").images(tmp_path, ["a.png", "a.png"], [(20, 10, 80, 70), (0, 0, 9, 9)])
    np.testing.assert_array_equal(part[:1], encode_images(clip, [Image.fromarray(noise[10:70, 20:80])]))
    assert np.abs(part[0].astype(float) - part[1]).max() > 0.01


def test_images_of_aro_elsewhere(tmp_path: Path) -> None:
    rows = aro(tmp_path, "vg_attribution")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    file, images = tmp_path / "visual_genome_attribution.json", tmp_path / "elsewhere"
    benchmark = BenchmarkOptions(name="x", kind="vg_attribution", path=file.name, images="elsewhere")
    with pytest.raises(BenchmarkError, match=r"no images next to .*`images` \(--images\)"):
        prepare(benchmark, file)
    assert prepare(benchmark, file, images=images).measure(WordEncoder()).notes["cases"] == 120
    hashed = source_files("vg_attribution", file, images=images)
    assert file in hashed and images / rows[0]["image_path"] in hashed


def changed(**change: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        rows = aro(folder, "vg_relation")
        (folder / "visual_genome_relation.json").write_text(json.dumps([rows[0] | change, *rows[1:]]))

    return make


def wrong(name: str, *rows: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("\n".join(map(json.dumps, rows)))


CAPTION = {"filename": "a.jpg", "caption": "a", "caption2": "b"}


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("vg_relation", changed(bbox_w=0), r"relation\.json, row 1: no part"),
        ("vg_relation", changed(relation_name=None), r"row 1: relation_name is None"),
        ("vg_relation", changed(image_path="gone.jpg"), r"lacks 1 of \d+ images .*n\.json, first 'gone\.jpg'"),
        ("sugarcrepe", lambda folder: None, "has no rows; expected filename, caption"),
        ("sugarcrepe", wrong("add_att.json", [CAPTION]), r"add_att\.json, row 1: negative_caption is None"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(tmp_path: Path, kind: str, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(BenchmarkError, match=message):
        measured(kind, tmp_path)


def test_named_images_must_all_be_there_and_wrong_options_are_named(tmp_path: Path) -> None:
    crepe(tmp_path, PLUS)
    touch(tmp_path / "pics", ["sea.jpg"])
    for kind in ("sugarcrepe", "sugarcrepe_pp"):
        with pytest.raises(BenchmarkError, match=r"pics lacks 2 of 3 images"):
            prepare(BenchmarkOptions(name="x", kind=kind, path="."), tmp_path, images=tmp_path / "pics")
    with pytest.raises(ValueError, match=r"options\.pols: Extra inputs.*paraphrased_retrieval takes pool"):
        BenchmarkOptions(name="x", kind="paraphrased_retrieval", path="x", options={"pols": "all"})
