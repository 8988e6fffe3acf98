"""Rendering and the files of the data set."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from paraclip_core.demo.drawings import DRAWINGS
from paraclip_core.demo.render import render, write_scenes
from paraclip_core.demo.scenes import COLORS, KINDS, PLACES, RELATIONS, Scene, SceneImage, Thing


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def pixels(scene: Scene, index: int = 0) -> np.ndarray:
    return np.asarray(render(SceneImage(index, 0, "val", scene), 96), np.int16)


def test_every_kind_has_a_drawing_that_shows_its_color() -> None:
    assert set(DRAWINGS) == set(KINDS)
    assert all(set(kind.colors) <= set(COLORS) for kind in KINDS.values())
    for kind in KINDS.values():
        for color in kind.colors:
            image = pixels(Scene(Thing(kind.word, color), "in the snow"))
            near = np.abs(image - np.array(COLORS[color].rgb)).max(axis=2) < 48
            assert near.mean() > 0.02, f"{color} {kind.word}"


def test_places_and_relations_all_render() -> None:
    for index, place in enumerate(PLACES):
        for relation in RELATIONS:
            scene = Scene(Thing("dog", "black"), place, relation, Thing("table", "white", "large"))
            image = render(SceneImage(index, 0, "train", scene), 64)
            assert (image.size, image.mode) == ((64, 64), "RGB")


def test_what_is_above_is_drawn_higher() -> None:
    def height(scene: Scene) -> float:
        image = pixels(scene)
        return float(np.nonzero((image[..., 0] > 150) & (image[..., 1] < 110) & (image[..., 2] < 110))[0].mean())

    red, blue = Thing("bag", "red"), Thing("bag", "blue")
    assert height(Scene(red, "at night", "above", blue)) < 48 < height(Scene(red, "at night", "under", blue))


def test_the_files_hold_what_they_say(tmp_path: Path) -> None:
    write_scenes(tmp_path, images=40, side=96)
    captions, queries = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("captions", "paraphrased_queries")
    )
    assert (len(captions), len(queries)) == (80, 10)
    assert [row["image_id"] for row in queries] == sorted({r["image_id"] for r in captions if r["split"] == "val"})
    assert set(captions[0]) == {"image_id", "image", "caption", "split"}
    with tarfile.open(tmp_path / "images.tar") as archive:
        members = archive.getmembers()
        assert {member.name for member in members} == {row["image"] for row in captions}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        file = archive.extractfile(members[0])
        assert file is not None
        assert Image.open(io.BytesIO(file.read())).size == (96, 96)


def test_a_second_try_over_half_written_files_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    again.mkdir()
    (again / "images.tar").write_bytes(b"left over from a try that was cut off" * 100_000)
    for folder in (whole, again):
        write_scenes(folder, images=40, side=96)
    assert digests(whole) == digests(again)
