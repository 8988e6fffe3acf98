"""Small JPEGs for the report."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

__all__ = ["thumbnail"]

SIDE = 112
QUALITY = 74


def thumbnail(image: Image.Image) -> bytes:
    """The middle square of an image as a JPEG file of 112 by 112 pixels, without metadata."""
    small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
