"""Image features on disk: float16 shards, memory-mappable, with an index of image ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from paraclip_core.errors import ArtifactError
from storage.atomic import write_atomic

__all__ = ["FeatureStore", "shard_path", "write_index", "write_shard"]

CHECK_ROWS = 65_536

INDEX = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("pixels", pa.binary(16), nullable=False),
    ]
)


def shard_path(folder: Path, shard: int) -> Path:
    """Where shard number `shard` of an artifact folder lies."""
    return folder / "features" / f"shard-{shard:05d}.npy"


def write_shard(folder: Path, shard: int, features: np.ndarray) -> None:
    """Write float16 [n, d] as one shard, atomically."""

    def save(file: BinaryIO) -> None:
        rows = np.ascontiguousarray(features, dtype=np.float16)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        # np.save would write the same, but its error on a full disk does not say that the disk is full.
        file.write(rows.reshape(-1).view(np.uint8).data)

    write_atomic(shard_path(folder, shard), save)


def write_index(folder: Path, tables: Iterable[pa.Table]) -> None:
    """Write the index of an artifact folder, atomically and table by table, in the order of the shards."""

    def save(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, INDEX, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(INDEX))

    write_atomic(folder / "index.parquet", save)


class FeatureStore:
    """Reads what the features stage wrote. Row `i` of the matrix belongs to `image_ids[i]`."""

    def __init__(self, artifact_folder: Path) -> None:
        """Read the index.

        Raises:
            ArtifactError: it is missing, damaged, or lists an image twice.
        """
        self.folder = Path(artifact_folder)
        path = self.folder / "index.parquet"
        try:
            index = pq.read_table(path, columns=["image_id", "shard", "row"]).combine_chunks()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ArtifactError(f"cannot read {path}: {error}; run the features stage again") from error
        self._ids: pa.Array = index["image_id"].combine_chunks()
        if isinstance(self._ids, pa.ChunkedArray):
            self._ids = pa.concat_arrays(self._ids.chunks) if self._ids.num_chunks else pa.array([], pa.string())
        if len(self._ids.unique()) != len(self._ids):
            raise ArtifactError(f"{path} lists an image twice; run the features stage again")
        self._shards = np.asarray(index["shard"], dtype=np.int64)
        self._rows = np.asarray(index["row"], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def image_ids(self) -> list[str]:
        """Ids of the images, in the order of the matrix's rows."""
        return self._ids.to_pylist()

    def matrix(self) -> np.ndarray:
        """float16 [n, d], rows of length 1 before rounding; memory-mapped where there is one shard.

        Raises:
            ArtifactError: a shard is missing, of another shape than the index says, or holds values that are not
                finite.
        """
        counts = np.bincount(self._shards, minlength=1)
        expected = np.concatenate([np.arange(count) for count in counts])
        if np.any(np.diff(self._shards) < 0) or not np.array_equal(self._rows, expected[: len(self._rows)]):
            raise ArtifactError(f"{self.folder / 'index.parquet'} is not in the order of the shards")
        shards = [self._load(number, int(rows)) for number, rows in enumerate(counts)]
        if len({shard.shape[1] for shard in shards}) != 1:
            raise ArtifactError(f"the shards in {self.folder / 'features'} differ in their dimension")
        return shards[0] if len(shards) == 1 else np.concatenate(shards)

    def find(self, image_ids: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int64 [n]: the matrix row of each image, -1 where it has no features (no image, or a corrupt one)."""
        wanted = image_ids if isinstance(image_ids, pa.Array | pa.ChunkedArray) else pa.array(image_ids, pa.string())
        # pyarrow's compute functions are made at import, so type checkers do not know them.
        found = compute.call_function("index_in", [wanted], compute.SetLookupOptions(self._ids, skip_nulls=True))
        return np.asarray(found.fill_null(-1), dtype=np.int64)

    def rows(self, image_ids: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int64 [n]: the matrix row of each image.

        Raises:
            ArtifactError: one has no features; the message names it.
        """
        found = self.find(image_ids)
        if (found < 0).any():
            missing: Any = image_ids[int(np.flatnonzero(found < 0)[0])]
            name = missing.as_py() if isinstance(missing, pa.Scalar) else missing
            raise ArtifactError(
                f"image {name!r} has no features in {self.folder}; it may be corrupt (see the rejects there)"
            )
        return found

    def _load(self, number: int, rows: int) -> np.ndarray:
        path = shard_path(self.folder, number)
        try:
            shard = np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"cannot read {path}: {error}; run the features stage again") from error
        if shard.dtype != np.float16 or shard.ndim != 2 or len(shard) != rows:
            raise ArtifactError(f"{path} holds {shard.dtype} {shard.shape}, expected float16 with {rows} rows")
        for start in range(0, rows, CHECK_ROWS):
            bad = ~np.isfinite(shard[start : start + CHECK_ROWS]).all(axis=1)
            if bad.any():
                row = start + int(np.flatnonzero(bad)[0])
                raise ArtifactError(f"row {row} of {path} is not finite; delete the artifact to have it made again")
        return shard
