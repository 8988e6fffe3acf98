"""Tensors of a TorchScript archive, the format of OpenAI's CLIP files, read without running what is in it.

``torch.jit.load`` compiles the code of an archive, and torch's restricted reader refuses such archives altogether. But
the tensors lie in plain view: ``data.pkl`` lists the modules' attributes, ``data/N`` hold the storages. Here the list
is read by an unpickler that knows the five names it needs and makes an inert object of every module class, so nothing
an archive holds can be called. (Restricting globals is the way that Python's own documentation gives.)
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from paraclip_core.errors import ModelError

__all__ = ["is_torchscript", "read_torchscript"]

DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Double": torch.float64,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
LISTS = {"build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with constants of compiled code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by their dotted names, as ``torch.jit.load(path).state_dict()`` would give them and some more.

    Raises:
        ModelError: the archive is damaged, or holds something else than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ModelError(f"{path} has {len(names)} data.pkl, a TorchScript archive has one; fetch it again")
            with archive.open(names[0]) as listing:
                root = _Reader(listing, archive, names[0].removesuffix("data.pkl")).load()
            return dict(_tensors(root, ""))
    except ModelError as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    except Exception as error:  # zipfile, pickle and torch raise whatever the damage happens to hit
        raise ModelError(f"{path} is a damaged TorchScript archive ({error}); fetch it again") from error


class _Module:
    """Stands for an object of any compiled class; all it does is to keep its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Reads the list of attributes; no name of an archive leads to anything that does more than to build a tensor."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(file)
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        }
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        if (module, name) not in known:
            raise ModelError(f"it names {module}.{name}, which a CLIP archive has no need of; nothing of it was run")
        return known[module, name]

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ModelError(f"it holds {kind!r} where a storage is expected")
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._prefix}data/{key}")
            # torch stores tensors as they are; what is packed could be far larger than the file.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * dtype.itemsize:
                raise ModelError(f"storage {key} is packed, or has not the {count} numbers that it should have")
            data = bytearray(self._archive.read(entry))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    return storage.as_strided(size, stride, offset)  # torch refuses what leads out of the storage


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value.clone()
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
