"""VG-Relation and VG-Attribution: both accuracies against a plain loop, the parts of images, and wrong files."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_encoder import WordEncoder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks.aro import FEWEST_CASES, SYMMETRIC
from paraclip_core.evaluation.metrics import macro_weights
from paraclip_core.evaluation.run import prepare, source_files

KINDS = ("vg_relation", "vg_attribution")
FILES = {"vg_relation": "visual_genome_relation.json", "vg_attribution": "visual_genome_attribution.json"}
WORDS = ("dog", "cat", "horse", "tree", "man", "car", "grass", "hat")


def published(folder: Path, kind: str, count: int = 120) -> list[dict[str, Any]]:
    """A small set in the published format, with empty files for images."""
    draw = random.Random(kind)
    (folder / "images").mkdir()
    rows = []
    for _ in range(count):
        one, other = draw.sample(WORDS, 2)
        image = f"{one}_{draw.choice(WORDS)}.jpg"
        (folder / "images" / image).touch()
        box = {"bbox_x": draw.randrange(9), "bbox_y": 0, "bbox_w": draw.randrange(1, 9), "bbox_h": 7}
        texts = {"true_caption": f"the {one} on the {other}", "false_caption": f"the {other} under the {one} "}
        if kind == "vg_relation":
            group = {"relation_name": draw.choice(["on", "under", "near", "behind"])}
        else:
            group = {
                "attributes": draw.choice([["red", "old"], ["new", "big"], ["wet", "dry"]]) if _ > 9 else ["a", "b"]
            }
        rows.append({"image_id": "1", "image_path": image, **box, **texts, **group})
    (folder / FILES[kind]).write_text(json.dumps(rows))
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_both_accuracies_equal_a_plain_loop(tmp_path: Path, kind: str) -> None:
    rows = published(tmp_path, kind)
    encoder = WordEncoder()
    measured = prepare(BenchmarkOptions(name="x", kind=kind, path="."), tmp_path).measure(encoder)
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        box = (row["bbox_x"], 0, row["bbox_x"] + row["bbox_w"], 7)
        image = encoder.images(tmp_path, [row["image_path"]], [box])[0].astype(float)
        true, false = encoder.texts([row["true_caption"].strip(), row["false_caption"].strip()]).astype(float)
        outcomes[row.get("relation_name") or "_".join(row["attributes"])].append(image @ true > image @ false)
    kept = {name: hits for name, hits in outcomes.items() if name != "near" and len(hits) >= (25 if "_" in name else 1)}
    assert len(kept) == 3 and len(outcomes) == 4
    assert measured.metrics["macro_accuracy"] == pytest.approx(100 * np.mean([np.mean(hits) for hits in kept.values()]))
    assert measured.metrics["micro_accuracy"] == pytest.approx(
        100 * np.mean([hit for h in outcomes.values() for hit in h])
    )
    assert (measured.notes["groups"], measured.notes["groups_in_macro"], measured.notes["cases"]) == (4, 3, 120)
    assert encoder.encoded_images < 2 * len(rows)  # equal parts are encoded once, beside the loop's own


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1))
def test_weights_turn_a_mean_into_the_mean_of_groups(rows: list[tuple[str, bool]]) -> None:
    groups, hits = [group for group, _ in rows], np.array([hit for _, hit in rows], float)
    means = [np.mean([hit for of, hit in rows if of == group]) for group in set(groups)]
    assert (hits * macro_weights(groups)).mean() == pytest.approx(np.mean(means))


def test_the_authors_lists() -> None:
    assert len(SYMMETRIC) == 157 and FEWEST_CASES == 25
    assert {"near", "next to", "with", "on the side of", "adjusting", "wrapped in"} <= SYMMETRIC
    assert all(name == name.strip() and "  " not in name for name in SYMMETRIC)
    assert not {"on", "behind", "riding", "eating", "to the left of"} & SYMMETRIC


def test_a_real_tower_sees_the_part_alone(tmp_path: Path) -> None:
    from paraclip_core.clip.embedded import embedded_clip
    from paraclip_core.clip.encode import encode_images
    from paraclip_core.clip.export import save_release
    from paraclip_core.config import ModelOptions
    from paraclip_core.evaluation.candidate import Candidate

    clip = embedded_clip(ModelOptions(text_width=64, text_layers=1, embed_dim=32))
    save_release(clip, tmp_path / "model", "card")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(noise).save(tmp_path / "images" / "a.png")
    box = (20, 10, 80, 70)
    part = Candidate(str(tmp_path / "model"), "cpu").images(
        tmp_path / "images", ["a.png", "a.png"], [box, (0, 0, 9, 9)]
    )
    np.testing.assert_array_equal(part[:1], encode_images(clip, [Image.fromarray(noise[10:70, 20:80])]))
    assert np.abs(part[0].astype(float) - part[1]).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_w": 0}, r"relation\.json, row 1: a part of 0 x 7 pixels"),
        ({"bbox_x": "left"}, r"row 1: bbox_x, bbox_y, bbox_w, bbox_h are \['left'"),
        ({"relation_name": None}, r"row 1: no field relation_name"),
        ({"true_caption": " "}, r"row 1: true_caption is ' '"),
        ({"image_path": "gone.jpg"}, r"images lacks 1 of \d+ images of .*relation\.json, first 'gone\.jpg'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = published(tmp_path, "vg_relation")
    (tmp_path / FILES["vg_relation"]).write_text(json.dumps([rows[0] | change, *rows[1:]]))
    with pytest.raises(BenchmarkError, match=message):
        prepare(BenchmarkOptions(name="x", kind="vg_relation", path="."), tmp_path)


def test_images_elsewhere_and_attributes_that_are_none(tmp_path: Path) -> None:
    rows = published(tmp_path, "vg_attribution")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    file = tmp_path / FILES["vg_attribution"]
    benchmark = BenchmarkOptions(name="x", kind="vg_attribution", path=file.name, images="elsewhere")
    with pytest.raises(BenchmarkError, match=r"no images beside .*`images` \(--images\)"):
        prepare(benchmark, file)
    measured = prepare(benchmark, file, images=tmp_path / "elsewhere").measure(WordEncoder())
    assert measured.notes["cases"] == 120
    hashed = source_files("vg_attribution", file, images=tmp_path / "elsewhere")
    assert file in hashed and tmp_path / "elsewhere" / rows[0]["image_path"] in hashed
    file.write_text(json.dumps([rows[0] | {"attributes": ["one"]}]))
    with pytest.raises(BenchmarkError, match=r"row 1: attributes is \['one'\], expected a list of two"):
        prepare(benchmark, file, images=tmp_path / "elsewhere")
