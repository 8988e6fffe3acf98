"""Reads existing image indexes.

A reader turns a file into a matrix and, if the file has them, ids; to add a format, add a function and a row of
:data:`READERS`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from paraclip_core.captions.readers.json import load_json
from paraclip_core.errors import InputError
from paraclip_core.pictures import damaged_parquet

ID_COLUMNS = ("image_id", "id", "key", "image_path", "filename", "path", "url")
VECTOR_COLUMNS = ("features", "embedding", "embeddings", "image_embedding", "vector")
BLOCK = 65_536


class Gallery(Protocol):
    """Image features, [n, d] of a floating dtype: an array, or anything that can be indexed with row numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> np.ndarray: ...


Matrix = tuple[Gallery, Sequence[str] | None]
"""Image features [n, d], and the ids in the file, if any."""


@dataclass(frozen=True)
class ImageIndex:
    """Image features and the id of each row."""

    features: Gallery
    """[n, d], of any norm and floating dtype, on disk or in memory."""
    ids: Sequence[str]
    source: str
    """Where they come from, for messages."""
    named: bool = True
    """False if the ids are only row numbers."""

    def __len__(self) -> int:
        return len(self.ids)


def read_index(path: Path, ids: Path | None = None) -> ImageIndex:
    """Read an index by its file's suffix (``.npy`` [n, d], Parquet), or a folder of shards written by clip-retrieval.

    `ids` has one id per row: text (one per line), JSON (a list), or Parquet (a column). By default ids are taken from
    the index, or else are the row numbers.
    """
    if not path.exists():
        raise InputError(f"the index {path} does not exist")
    reader = _read_folder if path.is_dir() else READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: no index format has this suffix; expected one of {', '.join(READERS)}, or a folder")
    features, own = reader(path)
    if len(features.shape) != 2 or not len(features):
        raise InputError(f"{path} holds features of shape {features.shape}; expected a row for each image, [n, d]")
    names = _read_ids(ids) if ids is not None else own
    named = names is not None
    if names is None:
        names = [str(row) for row in range(len(features))]
    if len(names) != len(features):
        raise InputError(
            f"{ids or path} names {len(names)} images, but {path} has features of {len(features)}; "
            "expected one id for each row, in the same order"
        )
    return ImageIndex(features, names, str(path), named)


def index_files(path: Path) -> list[Path]:
    """The ``.npy`` files of an index, in the order of its rows; empty if its features are in Parquet."""
    if path.is_dir():
        return sorted(_folder(path).glob("*.npy"), key=_by_number)
    return [path] if path.suffix.lower() == ".npy" else []


def _folder(path: Path) -> Path:
    return path / "img_emb" if (path / "img_emb").is_dir() else path


def _read_folder(path: Path) -> Matrix:
    """Shards of one kind, in numerical order; ids next to them in ``metadata/*.parquet``."""
    folder, shards = _folder(path), index_files(path)
    if not shards:
        if any(folder.glob("*.parquet")):
            return _read_parquet(folder)
        raise InputError(f"{path} contains neither .npy nor Parquet files")
    matrices = [_read_npy(shard)[0] for shard in shards]
    if len({matrix.shape[1] for matrix in matrices}) != 1:
        raise InputError(f"the .npy files in {folder} differ in width")
    metadata = path / "metadata"
    files = sorted(metadata.glob("*.parquet"), key=_by_number)
    ids = [name for file in files for name in _read_ids(file)] if files else None
    return _Shards(matrices), ids


def _by_number(path: Path) -> tuple[int, str]:
    """A sort key by which ``img_emb_10`` comes after ``img_emb_9``."""
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits or 0), path.name


def _read_npy(path: Path) -> Matrix:
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy passes a damaged header to Python's parsers
        raise InputError(f"cannot read features from {path}: {error}; expected a .npy file") from error
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind != "f":
        shape = f"{features.dtype} {features.shape}" if isinstance(features, np.ndarray) else "several arrays"
        raise InputError(f"{path} holds {shape}; expected floating-point features [n, d]")
    return features, None


def _read_parquet(path: Path) -> Matrix:
    # A folder may hold other files, too, such as a README or Spark's _SUCCESS.
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        return _vectors_and_ids(path, ds.dataset([str(part) for part in parts], format="parquet"))
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from error


def _vectors_and_ids(path: Path, files: ds.Dataset) -> Matrix:
    schema = files.schema
    vectors = [field.name for field in schema if _is_vector(field.type)]
    column = next((name for name in VECTOR_COLUMNS if name in vectors), vectors[0] if len(vectors) == 1 else None)
    if column is None:
        described = f"several ({', '.join(vectors)})" if vectors else f"none (columns {', '.join(schema.names)})"
        raise InputError(f"{path}: expected one column of vectors or one named {VECTOR_COLUMNS[0]}, found {described}")
    names = next((name for name in ID_COLUMNS if name in schema.names), None)
    ids: list[str] = []

    def blocks() -> Iterator[NDArray[np.floating]]:
        width = start = 0
        for batch in files.to_batches(columns=[column, *([names] if names else [])], batch_size=BLOCK):
            if not len(batch):
                continue
            lists = batch.column(0)
            values = np.asarray(lists.flatten(), np.float32)
            lengths = np.asarray(lists.value_lengths().fill_null(0))
            width = width or int(lengths[lengths > 0][0] if lengths.any() else 0)
            wrong = (lengths != width) | (lengths == 0)
            if wrong.any():
                row = start + int(wrong.argmax())
                raise InputError(f"{path}: row {row} of {column!r} is not a vector of {width} numbers like the others")
            if names:
                ids.extend(map(str, batch.column(1).to_pylist()))
            start += len(batch)
            yield values.reshape(-1, width)

    return _spooled(blocks(), files.count_rows()), ids or None


def _is_vector(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and pa.types.is_floating(kind.value_type)


READERS: Mapping[str, Callable[[Path], Matrix]] = {".npy": _read_npy, ".parquet": _read_parquet}


def _spooled(blocks: Iterable[NDArray[np.floating]], rows: int) -> Gallery:
    """Blocks of rows as float16 [rows, d] in a temporary file, so that memory does not grow with the number of rows."""
    matrix: np.ndarray = np.zeros((0, 0), np.float16)
    start = 0
    for block in blocks:
        if not start:
            # Unlinked, so that it disappears with the process that maps it.
            with tempfile.TemporaryFile(prefix="paraclip-index-") as file:
                matrix = np.memmap(file, np.float16, mode="w+", shape=(rows, block.shape[1]))
        # Scaled to length 1: float16 would overflow with long vectors.
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        matrix[start : start + len(block)] = block / np.maximum(norms, 1e-12)
        start += len(block)
    return matrix


class _Shards:
    """Vertically stacked matrices, without copying."""

    def __init__(self, matrices: Sequence[Gallery]) -> None:
        self._matrices = matrices
        self._starts = np.cumsum([0, *(len(matrix) for matrix in matrices)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self._matrices[0].shape[1]

    def __getitem__(self, rows: NDArray[np.int64], /) -> np.ndarray:
        features = np.empty((len(rows), self.shape[1]), np.float32)
        shards = np.searchsorted(self._starts, rows, "right") - 1
        for shard in np.unique(shards):
            inside = shards == shard
            features[inside] = self._matrices[shard][rows[inside] - self._starts[shard]]
        return features


def _read_ids(path: Path) -> list[str]:
    if not path.exists():
        raise InputError(f"the file of ids {path} does not exist")
    try:
        if path.suffix == ".parquet":
            names = ds.dataset(path, format="parquet").schema.names
            column = next((name for name in ID_COLUMNS if name in names), names[0])
            return [str(value) for value in ds.dataset(path).to_table([column]).column(0).to_pylist()]
        if path.suffix != ".json":
            return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"cannot read ids from {path}: {error}") from error
    ids = load_json(path)
    if not isinstance(ids, list):
        raise InputError(f"{path} does not hold a list; expected one id for each row of the features")
    return [str(name) for name in ids]
