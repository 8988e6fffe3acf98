"""The texts without the images."""

from __future__ import annotations

from pathlib import Path

from paraclip_core.config import ScenesOptions
from paraclip_core.scenes.dataset import write_scenes
from paraclip_core.scenes.texts import write_texts


def test_texts_alone_are_those_of_the_data_set(tmp_path: Path) -> None:
    options = ScenesOptions(images=60, image_size=64, seed=3)
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    for folder in (whole, alone):
        folder.mkdir()
    write_scenes(options, whole)
    write_texts(options, alone)
    assert {path.name for path in whole.iterdir()} - {path.name for path in alone.iterdir()} == {"images.tar"}
    for path in alone.iterdir():
        assert path.read_bytes() == (whole / path.name).read_bytes()
