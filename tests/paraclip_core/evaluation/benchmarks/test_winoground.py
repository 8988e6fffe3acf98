"""Winoground: the three scores against a plain loop, in both formats, and what chance gives."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_encoder import WordEncoder
from PIL import Image

from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks.winoground import Groups, measure
from paraclip_core.evaluation.candidate import Candidate
from paraclip_core.evaluation.pool import stored_pool
from paraclip_core.evaluation.run import prepare

PAIRS = [("dog", "cat"), ("old_man", "new_car"), ("red", "blue_tree"), ("horse", "grass")]


def listed(folder: Path) -> None:
    """The hub's examples.jsonl with empty images."""
    (folder / "images").mkdir()
    rows = []
    for number, (one, other) in enumerate(PAIRS):
        names = [f"{one}_{number}", f"{other}_{number}"]
        for name in names:
            (folder / "images" / f"{name}.png").touch()
        captions = [one.replace("_", " "), f"{other} {number}".replace("_", " ")]
        tag = "Object" if number < 3 else "Both"
        rows.append({"id": number, "image_0": names[0], "image_1": names[1], "caption_0": captions[0]})
        rows[-1] |= {"caption_1": captions[1], "collapsed_tag": tag}
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))


def by_hand(images: np.ndarray, texts: np.ndarray) -> tuple[float, float, float]:
    """Percent of text, image and group score; both [n, 2, d]."""
    scores = []
    for picture, text in zip(images.astype(float), texts.astype(float), strict=True):
        s = text @ picture.T
        right = (s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1], s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0])
        scores.append((*right, all(right)))
    return tuple((100 * np.mean(scores, axis=0)).tolist())


def test_the_scores_equal_a_plain_loop(tmp_path: Path) -> None:
    listed(tmp_path)
    encoder = WordEncoder()
    measured = prepare(BenchmarkOptions(name="w", kind="winoground", path="."), tmp_path).measure(encoder)
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    images = np.stack([encoder.images(tmp_path, [row["image_0"], row["image_1"]]) for row in rows])
    texts = np.stack([encoder.texts([row["caption_0"], row["caption_1"]]) for row in rows])
    found = tuple(measured.metrics[f"{name}_score"] for name in ("text", "image", "group"))
    assert found == pytest.approx(by_hand(images, texts))
    assert "text_score@Object" in measured.metrics and "text_score@Both" not in measured.metrics
    assert measured.notes["groups"] == 4


def test_random_scores_are_those_of_chance() -> None:
    count, rng = 4000, np.random.default_rng(0)
    features = rng.normal(size=(4 * count, 64))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    names = [[f"{side}{n}" for n in range(count)] for side in "abcd"]
    rows = {name: row for row, name in enumerate(name for side in names for name in side)}
    pool = stored_pool([*names[0], *names[1]], lambda: features[: 2 * count], None)

    class Random(WordEncoder):
        def texts(self, texts: Sequence[str]) -> np.ndarray:
            return features[[rows[text] for text in texts]]

    groups = Groups((names[0], names[1]), (names[2], names[3]), [""] * count, pool)
    measured = measure(groups, Random())
    images = np.stack([features[:count], features[count : 2 * count]], axis=1)
    texts = np.stack([features[2 * count : 3 * count], features[3 * count :]], axis=1)
    assert tuple(measured.metrics.values()) == pytest.approx(by_hand(images, texts))
    assert tuple(measured.metrics.values()) == pytest.approx((25, 25, 100 / 6), abs=2.5)


def test_the_hubs_parquet(tmp_path: Path) -> None:
    from paraclip_core.clip.embedded import embedded_clip
    from paraclip_core.clip.export import save_release
    from paraclip_core.config import ModelOptions

    rng, pictures = np.random.default_rng(0), []
    for _ in range(6):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    texts = [["a dog", "a cat", "the sea"], ["a man", "a car", "the land"]]
    table = pa.table({"image_0": pictures[:3], "image_1": pictures[3:], "caption_0": texts[0], "caption_1": texts[1]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    clip = embedded_clip(ModelOptions(text_width=64, text_layers=1, embed_dim=32))
    save_release(clip, tmp_path / "model", "card")
    candidate = Candidate(str(tmp_path / "model"), "cpu")
    measured = prepare(BenchmarkOptions(name="w", kind="winoground", path="data"), tmp_path / "data").measure(candidate)
    from paraclip_core.clip.encode import encode_images

    images = encode_images(clip, [Image.open(io.BytesIO(p["bytes"])).convert("RGB") for p in pictures])
    both = np.stack([images[:3], images[3:]], axis=1)
    features = np.stack([candidate.texts(side) for side in texts], axis=1)
    assert tuple(measured.metrics.values()) == pytest.approx(by_hand(both, features))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    benchmark = BenchmarkOptions(name="w", kind="winoground", path=".")
    with pytest.raises(BenchmarkError, match=r"has no examples\.jsonl and no Parquet"):
        prepare(benchmark, tmp_path)
    listed(tmp_path)
    (tmp_path / "images" / "dog_0.png").unlink()
    with pytest.raises(BenchmarkError, match=r"images of .*examples\.jsonl are missing; .*`images`"):
        prepare(benchmark, tmp_path)
    (tmp_path / "examples.jsonl").write_text('{"image_0": "a", "image_1": "b", "caption_0": "c"}\n')
    with pytest.raises(BenchmarkError, match=r"row 1: no field caption_1"):
        prepare(benchmark, tmp_path)
