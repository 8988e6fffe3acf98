"""Shared parts of pages: templates that escape all text, figures, and thumbnails embedded once."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image, ImageOps

from paraclip_core.evaluation.thresholds import QUANTILES

SIDE, QUALITY = 112, 74
"""A thumbnail's side in pixels, and the quality of its JPEG."""


def page_environment() -> Environment:
    """The template environment of this folder: all text is escaped, and unknown names are errors."""
    environment = Environment(
        loader=PackageLoader("paraclip_core.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, difference=difference)
    environment.globals["QUANTILES"] = QUANTILES
    return environment


def style_rules(thumbnails: Mapping[str, bytes], classes: Mapping[str, str]) -> Markup:
    """CSS that embeds each picture once, as the background of its class, however often it is shown."""
    rules = (
        f".{classes[image_id]}{{background-image:url(data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})}}"
        for image_id, jpeg in sorted(thumbnails.items())
    )
    return Markup("\n".join(rules))


class Shown(NamedTuple):
    """An image of a ranked list, ready to draw."""

    image: str
    """Its id."""
    css_class: str
    shared: bool
    """Whether the list beside it has the image, too."""
    right: bool
    """Whether the query is known to describe it."""


def ranked(
    images: Sequence[str], compared: Sequence[str], classes: Mapping[str, str], right: Collection[str] = ()
) -> list[Shown]:
    """A ranked list next to the one that it is `compared` with; `classes`: CSS classes of images with a thumbnail."""
    return [Shown(image, classes.get(image) or "none", image in compared, image in right) for image in images]


def figure(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}"


def difference(value: float, decimals: int = 1) -> str:
    text = f"{value:+.{decimals + 1}f}"
    return text.removeprefix("-").removeprefix("+") if float(text) == 0 else text.replace("-", "−")


def thumbnail(image: Image.Image) -> bytes:
    """The middle square of an image as a JPEG file of 112 by 112 pixels, without metadata."""
    small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
