"""The options below `data`: where captions come from and which are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.readers import FORMATS
from paraclip_core.options import OPERATIONAL, Options

if TYPE_CHECKING:
    SourceFormat = str
else:
    SourceFormat = Literal[FORMATS]

USUAL_WORDS = 15
"""The published limit of a caption's words."""


class SourceOptions(Options):
    """A file or folder with captions."""

    path: str
    """File or folder, relative to `data.root`, or on the hub:
    `hf://datasets/ORG/NAME[@REVISION][/FILE]`. Any other data path may be on the hub, too."""
    format: SourceFormat = "auto"
    """Format of the file; `auto` decides by its name and first bytes."""
    images: str | None = None
    """Tar or folder with the images, relative to `data.root`; absent if a source has only captions, or contains its
    images, as do webdataset tars and Parquet with a column of pictures."""
    image_prefix: str = ""
    """Prefix for the ids of this source's images, such as `val/`, if another source uses them for other images."""
    columns: ColumnNames = ColumnNames()
    """Column names of Parquet, CSV, TSV and JSONL sources; headers match regardless of case, spaces and
    underscores."""
    split: str | None = None
    """Split of rows that do not state one. Default: train, or the split in the name of a Parquet file with pictures,
    such as `validation-00000-of-00002.parquet`."""
    license: str = "unknown"
    """License of rows that do not state one; the report and the model card list all licenses used."""


class IndexOptions(Options):
    """An image index that exists already, in place of images: the sources are then logs of queries."""

    model_config = ConfigDict(title="image index")

    features: str
    """Image features of the model to repair, relative to `data.root`: `.npy` [n, d], Parquet with a column of vectors,
    or a folder of shards as clip-retrieval writes them. `.npy` files are read where they are; nothing is copied."""
    ids: str | None = None
    """One id for each row: text (one per line), JSON (a list) or Parquet (a column). Default: those in the index, or
    else row numbers."""
    images: str | None = None
    """Folder, tar or Parquet with the images, whose names are the ids: a sample is compared with the index, and the
    report shows them. Without it, the index is taken on trust."""
    clicks: Literal["shown", "independent"] = "shown"
    """Where a log's clicks come from: `shown`, on results of the model to repair, which finds nearly all of them, so
    that they are reported and guard nothing; `independent`, on those of another system, so that recall of clicked
    images decides as any other."""


class DataOptions(Options):
    """Where captions and images come from and which captions are kept."""

    root: str = Field(default=".", json_schema_extra=OPERATIONAL)
    """Folder that source paths are relative to. Only contents affect a result, not their location."""
    index: IndexOptions | None = None
    """Train on an existing image index and a log of queries instead of captions of images."""
    sources: tuple[SourceOptions, ...] = ()
    """Files and folders to read. With `index`: logs of queries, text with one per line or tables with `query` and, if
    known, `image` (the id that was clicked), `count` (how often it was asked) and `split`."""
    held_out: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of the images whose captions become `val`, among rows without a stated split that would be `train`. An
    image's captions stay together; the choice of images depends only on their ids."""
    min_words: Annotated[int, Field(ge=1)] = 2
    """Captions with fewer words are rejected (published filter: 2). Words are separated by spaces; in scripts without
    spaces, two Chinese or Japanese characters count as a word, or four letters of Thai, Lao, Khmer or Burmese."""
    max_words: Annotated[int, Field(ge=1)] = USUAL_WORDS
    """Captions with more words are rejected (published filter: 15)."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable file does: `stop` fails the stage and names it, `skip` rejects it and continues."""

    @model_validator(mode="after")
    def _consistent(self) -> DataOptions:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) must not be above max_words ({self.max_words})")
        for number, source in enumerate(self.sources):
            if self.index is not None and source.images is not None:
                raise ValueError(
                    f"sources[{number}].images: a log of queries has no images of its own; name those of the index in "
                    "index.images"
                )
        return self
