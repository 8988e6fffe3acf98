"""Existing image indexes: reading them, and checking whether they stay valid with another model.

A reader turns a file into a matrix and, if the file has them, ids; to add a format, add a function and a row of
:data:`READERS`. An index stays valid if two models give the same image embeddings, which is checked by their weights,
by their preprocessing and by encoding images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from numpy.typing import NDArray
from PIL import Image

from paraclip_core.captions.readers.json import load_json
from paraclip_core.clip.encode import encode_images, encode_pixels
from paraclip_core.clip.model import ClipModel, image_encoder_hash, preprocess_hash
from paraclip_core.clip.search import Gallery
from paraclip_core.errors import InputError, ModelError
from paraclip_core.pictures import damaged_parquet

ID_COLUMNS = ("image_id", "id", "key", "image_path", "filename", "path", "url")
VECTOR_COLUMNS = ("features", "embedding", "embeddings", "image_embedding", "vector")
BLOCK = 65_536

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


READERS: Mapping[str, Callable[[Path], Matrix]] = {
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}


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


FEATURE_TOLERANCE = 2e-3
"""Tolerance for coordinates of stored unit vectors: float16 and another batch size change them by up to about 1e-3."""
SHOWN = 10


@dataclass(frozen=True)
class IndexCheck:
    """One comparison."""

    what: str
    """`image encoder`, `preprocessing`, `images` or `stored features`."""
    valid: bool
    detail: str
    differences: tuple[str, ...] = ()
    """The first ten images that differ."""


def check_encoders(base: ClipModel, tuned: ClipModel) -> list[IndexCheck]:
    """Compare the hashes of the image encoders and of their preprocessing.

    Equal weights may be used with another activation or number of heads, so features of noise must also be equal.
    """
    encoder = _compared("image encoder", image_encoder_hash(base), image_encoder_hash(tuned))
    preprocessing = _compared("preprocessing", preprocess_hash(base), preprocess_hash(tuned))
    if encoder.valid and preprocessing.valid and not np.array_equal(_noise_features(base), _noise_features(tuned)):
        detail = f"{image_encoder_hash(base)} in both, but the models compute differently with these weights"
        encoder = IndexCheck("image encoder", False, detail)
    return [encoder, preprocessing]


def check_images(
    base: ClipModel, tuned: ClipModel, images: Sequence[Image.Image], names: Sequence[str]
) -> tuple[IndexCheck, np.ndarray]:
    """Encode images with both models and compare bit for bit; also returns the base's features, float16 [n, d]."""
    first, second = encode_images(base, images), encode_images(tuned, images)
    if first.shape != second.shape:
        detail = f"the models give {first.shape[1]} and {second.shape[1]} dimensions"
        return IndexCheck("images", False, detail), first
    equal = (first.view(np.uint16) == second.view(np.uint16)).all(axis=1)
    gap = np.abs(first.astype(np.float32) - second.astype(np.float32)).max(axis=1, initial=0.0)
    differences = tuple(f"{names[row]}: by up to {gap[row]:.2g}" for row in np.flatnonzero(~equal)[:SHOWN])
    detail = f"{int(equal.sum())} of {len(equal)} images have the same embedding, bit for bit"
    return IndexCheck("images", bool(equal.all()), detail, differences), first


def check_features(stored: np.ndarray, computed: np.ndarray, names: Sequence[str]) -> IndexCheck:
    """Compare stored embeddings, [n, d] of any floating-point type, with computed ones, after normalizing both."""
    if stored.shape != computed.shape:
        raise ModelError(f"the stored features are {stored.shape}, but {computed.shape} were computed")
    gap = np.abs(_units(stored) - _units(computed)).max(axis=1, initial=0.0)
    wrong = ~(gap <= FEATURE_TOLERANCE)  # NaN is wrong, too
    differences = tuple(f"{names[row]}: by up to {gap[row]:.2g}" for row in np.flatnonzero(wrong)[:SHOWN])
    detail = f"{int((~wrong).sum())} of {len(wrong)} stored embeddings match the model's within {FEATURE_TOLERANCE:g}"
    return IndexCheck("stored features", not wrong.any(), detail, differences)


def _noise_features(clip: ClipModel) -> np.ndarray:
    return encode_pixels(clip, torch.randn(4, 3, *clip.image_size, generator=torch.Generator().manual_seed(0)))


def _compared(what: str, base: str, tuned: str) -> IndexCheck:
    detail = f"{base} in both" if base == tuned else f"{base} in the base, {tuned} in the tuned model"
    return IndexCheck(what, base == tuned, detail)


def _units(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
