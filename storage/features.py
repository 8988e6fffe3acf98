"""Image features on disk: float16 shards, memory-mappable, or links to an index elsewhere, with an index of image ids.

Anything missing, damaged or inconsistent with the index raises ArtifactError.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paraclip.storage.files import read_json, write_atomic, write_json
from paraclip.storage.parquet import CONFIG
from paraclip_core.errors import ArtifactError
from paraclip_core.tables import FEATURE_INDEX

log = logging.getLogger(__name__)

LINKS = "links.json"
"""Names the files of an index that is read where it is."""


def shard_path(folder: Path, shard: int) -> Path:
    """Path of shard number `shard` in an artifact folder."""
    return folder / "features" / f"shard-{shard:05d}.npy"


def write_shard(folder: Path, shard: int, features: np.ndarray) -> None:
    """Write float16 [n, d] as one shard, atomically."""
    data = BytesIO()
    np.save(data, np.ascontiguousarray(features, dtype=np.float16))
    write_atomic(shard_path(folder, shard), lambda file: file.write(data.getbuffer()))


def write_index(folder: Path, tables: Iterable[pa.Table]) -> None:
    """Write the index of an artifact folder, atomically and table by table, in the order of the shards."""

    def save(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, FEATURE_INDEX, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(FEATURE_INDEX))

    write_atomic(folder / "index.parquet", save)


def write_links(folder: Path, files: Sequence[Path]) -> None:
    """Let an artifact folder link the ``.npy`` files of an index, in the order of their rows, instead of shards."""
    write_json(folder / LINKS, [str(path.absolute()) for path in files])


class FeatureStore:
    """Reads what the features stage wrote. Row `i` of the matrix belongs to `image_ids[i]`."""

    def __init__(self, artifact_folder: Path) -> None:
        """Read where the rows are; image ids are read on first use."""
        self.folder = Path(artifact_folder)
        self._shards = np.asarray(self._read("shard"), np.int64)

    def __len__(self) -> int:
        return len(self._shards)

    @cached_property
    def ids(self) -> IdIndex:
        """Ids of the images, in the order of the matrix's rows."""
        return IdIndex(self._read("image_id"))

    def _read(self, column: str) -> pa.ChunkedArray:
        path = self.folder / "index.parquet"
        try:
            return pq.read_table(path, columns=[column])[column]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ArtifactError(f"cannot read {path}: {error}; run the features stage again") from error

    @cached_property
    def pixels(self) -> NDArray[np.uint64]:
        """The hash of each image's file as two numbers, uint64 [n, 2]: equal images share it."""
        numbers = [np.zeros((0, 2), "<u8")]
        for chunk in self._read("pixels").chunks:
            stored = np.frombuffer(chunk.buffers()[1], "<u8").reshape(-1, 2)
            numbers.append(stored[chunk.offset : chunk.offset + len(chunk)])
        return np.concatenate(numbers)

    @cached_property
    def image_ids(self) -> list[str]:
        """The same as a list."""
        return self.ids.ids.to_pylist()

    def ids_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of the images of these rows."""
        return self.ids.ids.take(pa.array(rows)).to_pylist()

    @property
    def linked(self) -> bool:
        """Whether the rows are those of an index elsewhere, of any norm and floating dtype."""
        return (self.folder / LINKS).exists()

    def view(self) -> FeatureRows:
        """The matrix without reading it: rows are read from the shards on demand."""
        counts = np.bincount(self._shards, minlength=1).tolist()
        if self.linked:
            return FeatureRows([Path(path) for path in read_json(self.folder / LINKS)], counts, normalized=False)
        return FeatureRows([shard_path(self.folder, number) for number in range(len(counts))], counts)

    def find(self, image_ids: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int64 [n]: the matrix row of each image, -1 if it has no features (no image, or a corrupt one)."""
        ids = image_ids if isinstance(image_ids, pa.Array | pa.ChunkedArray) else pa.array(image_ids, pa.string())
        return self.ids.find(ids)


class EarlierFeatures:
    """Looks up features by the image's contents, in artifacts of one image encoder: 32 bytes of memory per image."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        """Index the images of `stores`."""
        self._views = [store.view() for store in stores]
        self._starts = np.cumsum([0, *map(len, stores)])
        pixels = np.concatenate([np.zeros((0, 2), "<u8"), *(store.pixels for store in stores)])
        self._order = np.argsort(pixels[:, 0], kind="stable")
        self._first, self._second = (pixels[self._order, half] for half in (0, 1))

    def __call__(self, pixels: bytes) -> NDArray[np.float16] | None:
        """Features float16 [d] of the image whose file has this hash, None if no artifact has it."""
        first, second = np.frombuffer(pixels, "<u8")
        place = int(np.searchsorted(self._first, first))
        # Of two images with one first half, next to impossible, the second is encoded again.
        if place == len(self._first) or (self._first[place], self._second[place]) != (first, second):
            return None
        row = int(self._order[place])
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._views[number][np.array([row - self._starts[number]])][0]


class FeatureRows:
    """A float16 matrix [n, d] in shards on disk; nothing of it stays in memory.

    Rows of files that are not `normalized` may have any norm and floating dtype; they are normalized when read. Rows
    are read, not mapped: a file system that keeps big pages maps megabytes around each row that is touched.
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int], normalized: bool = True) -> None:
        """Rows of these ``.npy`` files, one file after the other; `counts` has the rows of each."""
        self._files, self._normalized = files, normalized
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        # Where the rows begin in each file, behind its header.
        self._offsets: list[int] = []
        self._dtypes: list[np.dtype] = []
        for path, rows in zip(files, counts, strict=True):
            try:
                shard = np.load(path, mmap_mode="r" if rows else None)
            except (OSError, ValueError, EOFError) as error:
                raise ArtifactError(f"cannot read {path}: {error}; run the features stage again") from error
            if len(shard) != rows:
                raise ArtifactError(f"{path} has {len(shard)} rows, not {rows}; run the features stage again")
            self._dimension = shard.shape[1]
            self._dtypes.append(shard.dtype)
            self._offsets.append(int(getattr(shard, "offset", 0)))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._dimension

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float16 [len(rows), d]: these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        features = np.empty((len(rows), self._dimension), np.float16)
        places = np.searchsorted(self._starts, rows, "right") - 1
        order = np.argsort(places, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(places[order])) + 1):
            if len(part):
                self._read(int(places[part[0]]), rows, part, features)
        return features

    def _read(self, shard: int, rows: np.ndarray, part: np.ndarray, out: np.ndarray) -> None:
        """Fill the rows `part` of `out`, all of which lie in one shard."""
        path, dtype = self._files[shard], self._dtypes[shard]
        raw = out if self._normalized else np.empty((len(part), self._dimension), dtype)
        size = raw.itemsize * self._dimension
        begins = (self._offsets[shard] + size * (rows[part] - self._starts[shard])).tolist()
        places = part if self._normalized else np.arange(len(part))
        whole = raw.view(np.uint8).reshape(-1).data
        try:
            with path.open("rb", buffering=0) as file:
                for place, begin in zip((size * places).tolist(), begins, strict=True):
                    file.seek(begin)
                    if file.readinto(whole[place : place + size]) != size:
                        raise ArtifactError(f"{path} was cut short; run the features stage again")
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error}; run the features stage again") from error
        if not self._normalized:
            wide = raw.astype(np.float32)
            out[part] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


class IdIndex:
    """Finds ids by a 64-bit hash and compares them, so that a collision is never taken for a match."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        """Index the ids; the position of an id is its row. Raises ValueError if an id comes twice."""
        whole = pa.chunked_array([ids]) if isinstance(ids, pa.Array) else ids
        # Large strings, because all ids together may have more than 2 GiB.
        chunks = whole.cast(pa.large_string()).chunks
        # A single chunk is not copied.
        self.ids = chunks[0] if len(chunks) == 1 else pa.concat_arrays([pa.array([], pa.large_string()), *chunks])
        hashes = _hashes(self.ids)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        # Two ids with one hash are next to impossible.
        if (self._hashes[1:] == self._hashes[:-1]).any():
            raise ValueError("an id comes twice")

    def find(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """int64 [n]: the row of each id, -1 for null and for unknown ids."""
        chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
        return np.concatenate([np.zeros(0, np.int64), *(self._find(chunk.cast(pa.large_string())) for chunk in chunks)])

    def _find(self, ids: pa.Array) -> NDArray[np.int64]:
        if not len(self.ids):
            return np.full(len(ids), -1, np.int64)
        hashes = _hashes(ids)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        rows = self._order[places]
        equal = pc.call_function("equal", [self.ids.take(pa.array(rows)), ids])
        return np.where(np.asarray(equal.fill_null(False)), rows, -1)


def _hashes(strings: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each string or null, uint64 [n]."""
    with duckdb.connect(":memory:", config=CONFIG) as con:
        con.register("strings", pa.table({"text": strings}))
        return np.asarray(con.execute("SELECT hash(text) AS hash FROM strings").fetchnumpy()["hash"], np.uint64)
