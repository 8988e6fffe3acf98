"""Columns of the generation cache in the forms that the index wants: keys as numbers, names as dictionaries."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from storage.segments import INDEXED

__all__ = ["as_numbers", "coded", "groups_of", "key_bytes", "with_halves"]

CODED = pa.schema(
    [
        field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.type == pa.string() else field
        for field in INDEXED
    ]
)


def with_halves(table: pa.Table) -> pa.Table:
    """The table with its `key` once more as two numbers, `hi` and `lo`, uint64."""
    hi, lo = _halves(table.column("key"))
    return table.append_column("hi", hi).append_column("lo", lo)


def key_bytes(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The bytes of 16-byte keys, uint64 [n, 2]."""
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not len(whole):
        return np.empty((0, 2), np.uint64)
    _, data = whole.buffers()
    return np.frombuffer(data, np.uint64, 2 * len(whole), 16 * whole.offset).reshape(-1, 2)


def as_numbers(half: np.ndarray) -> np.ndarray:
    """A half of keys as it lies in memory, uint64 [n], as the numbers that big-endian bytes mean."""
    return np.ascontiguousarray(half).view(">u8").astype(np.uint64)


def coded(table: pa.Table) -> pa.Table:
    """The `INDEXED` columns with model and prompt as dictionaries, however they come."""
    columns = []
    for field in CODED:
        column = table.column(field.name)
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=CODED)


def groups_of(rows: pa.Table) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """The number of each row's group, and each group's step, model and prompt."""
    model, prompt = (rows.column(name).unify_dictionaries().combine_chunks() for name in ("model", "prompt"))
    if not len(rows):
        return np.empty(0, np.int64), []
    models, prompts = model.dictionary.to_pylist(), prompt.dictionary.to_pylist()
    code = rows.column("step").to_numpy().astype(np.int64)
    for column, values in ((model, models), (prompt, prompts)):
        code = code * len(values) + column.indices.to_numpy()
    _, first, codes = np.unique(code, return_index=True, return_inverse=True)
    steps = rows.column("step").to_numpy()
    at = [(int(steps[row]), models[model.indices[row].as_py()], prompts[prompt.indices[row].as_py()]) for row in first]
    return codes, at


def _halves(keys: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The upper and lower 64 bits of 16-byte keys, read as big-endian numbers."""
    both = key_bytes(keys)
    return pa.array(as_numbers(both[:, 0])), pa.array(as_numbers(both[:, 1]))
