"""The stage ``features`` of a run from an existing image index, which is checked and linked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from paraclip.storage.features import IdIndex
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import base_sources
from paraclip.tasks.run.run import Missing, Run, Stage, find_missing, input_path, need
from paraclip_core.captions.options import IndexOptions
from paraclip_core.clip.index import ImageIndex, read_index
from paraclip_core.clip.reference import embedding_width, place_free_name
from paraclip_core.config import Settings
from paraclip_core.errors import InputError


def _options(run: Run) -> Mapping[str, Any]:
    """The options that decide the linked features."""
    index = index_of(run.settings)
    about = {"base": place_free_name(run.settings.model.base), "ids": index.ids is not None}
    return {"index": {**about, "compared": index.images is not None}}


def _places(run: Run) -> dict[str, str]:
    """The files and folders of the index, by the option that names each."""
    index = index_of(run.settings)
    places = {"features": index.features, "ids": index.ids, "images": index.images}
    return {name: place for name, place in places.items() if place is not None}


def _sources(run: Run) -> Mapping[str, str]:
    """Content hashes of the index, its ids and a base in a local folder."""
    contents = dict(base_sources(run))
    need(_missing(run), run.settings)
    places = {f"index/{name}": place for name, place in _places(run).items() if name != "images"}
    return contents | {name: run.hashes.of_place(input_path(run.settings, place)) for name, place in places.items()}


def _missing(run: Run) -> list[Missing]:
    places, expected = _places(run), "the image index, see docs/index-and-queries.md"
    absent = (find_missing(run.settings, f"data.index.{name}", place, expected) for name, place in places.items())
    return list(chain.from_iterable(absent))


def index_of(settings: Settings) -> IndexOptions:
    """The options of the index of a run that has one."""
    assert settings.data.index is not None
    return settings.data.index


def open_index(settings: Settings) -> tuple[ImageIndex, IdIndex]:
    """The index, and its ids to look them up, which are distinct; of its features only the shape was checked."""
    about = index_of(settings)
    ids = None if about.ids is None else input_path(settings, about.ids)
    index = read_index(input_path(settings, about.features), ids)
    if (width := embedding_width(settings.model.base)) is not None:
        check_width(index, width, settings.model.base)
    try:
        return index, IdIndex(pa.array(index.ids, pa.large_string()))
    except ValueError as error:
        raise InputError(
            f"{ids or index.source}: {_repeated(index.ids)}; expected a different id for each row, because a click on "
            "it could mean any"
        ) from error


def _repeated(ids: Sequence[str]) -> str:
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if (first := seen.setdefault(name, row)) != row:
            return f"rows {first} and {row} have the same id {name[:100]!r}"
    raise AssertionError("an id comes twice")


def check_width(index: ImageIndex, width: int, base: str) -> None:
    """Refuse an index whose rows are not as wide as the base's embeddings."""
    if index.features.shape[1] != width:
        raise InputError(
            f"{index.source} has {index.features.shape[1]} numbers a row, but {base} embeds into {width}: it is an "
            "index of another model; name the model that it was made with in model.base"
        )


LINKED = Stage(
    name="features",
    version=1,
    inputs=lambda settings: (),
    options=_options,
    body="paraclip.tasks.features.link:link",
    sources=_sources,
    missing=_missing,
    applies=lambda settings: corpus_of(settings).links,
    about="Check and link an existing index of image features.",
    pool="gpu",
    units=("encoded", "images"),
)
