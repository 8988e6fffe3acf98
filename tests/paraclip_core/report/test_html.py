"""Thumbnails are small and say nothing beside their picture."""

from __future__ import annotations

import io

from PIL import Image

from paraclip_core.report.html import thumbnail


def test_a_thumbnail_is_a_small_square_jpeg_without_metadata() -> None:
    image = Image.effect_noise((640, 360), 60).convert("RGB")
    content = thumbnail(image)
    with Image.open(io.BytesIO(content)) as small:
        assert (small.format, small.size) == ("JPEG", (112, 112))
        assert "exif" not in small.info
    assert len(content) < 12_000
