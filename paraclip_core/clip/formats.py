"""Weights files of every published format, read without running anything that is in them.

``torch.jit.load`` compiles the code of a TorchScript archive, OpenAI's format, and torch's restricted reader refuses
such archives. But the tensors lie in plain view: ``data.pkl`` lists the modules' attributes, ``data/N`` hold the
storages. An unpickler that knows five names and builds an inert object for every module class reads the list, so
nothing in an archive can be called.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paraclip_core.errors import ModelError, one_line

__all__ = ["is_torchscript", "openai_model_cfg", "read_torchscript", "read_weights"]

HOLDERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights among what else they save; open_clip and LaCLIP: the first."""

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""What OpenAI's archives keep among the tensors."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, without the prefix that data-parallel training gives them.

    Reads safetensors, torch's files (with torch's restricted unpickler) and OpenAI's TorchScript archives.

    Raises:
        ModelError: there is no such file, or it is damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    if path.suffix in (".npz", ".npy"):
        raise ModelError(
            f"{path} is in big_vision's format, which is not read; use the same model as open_clip has it, for example "
            "ViT-B-16-SigLIP:webli"
        )
    if path.suffix == ".safetensors":
        tensors: Any = _safetensors(path)
    elif is_torchscript(path):
        tensors = read_torchscript(path)
    else:
        tensors = _torch_file(path)
    while names := [name for name in HOLDERS if isinstance(tensors.get(name), Mapping)]:
        tensors = tensors[names[0]]
    weights = {
        name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name.rpartition(".")[2] not in NOT_WEIGHTS}
    if not weights:
        raise ModelError(f"{path} holds no tensors by name; expected the state_dict of a CLIP model")
    return weights


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors' own, or an OSError
        raise ModelError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def _torch_file(path: Path) -> Mapping[str, Any]:
    try:
        # Training scripts save their options as a Namespace, which is only a dict with dots.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage happens to hit
        raise ModelError(
            f"{path} is damaged, or holds more than tensors and plain values, which are all that is read "
            f"({one_line(error)}); fetch it again, or save its state_dict as safetensors where you "
            "trust it"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path} holds a {type(loaded).__name__}; expected the state_dict of a CLIP model")
    return loaded


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
    """Stands for an object of any compiled class and keeps its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Reads the attributes' list; a name in it builds a tensor, a container or an inert module, nothing else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(file)
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        builders: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        }
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        if (module, name) not in builders:
            raise ModelError(f"it names {module}.{name}, which a CLIP archive has no need of; nothing of it was run")
        return builders[module, name]

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


def openai_model_cfg(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, Any]:
    """The `model_cfg` of one of OpenAI's models, from the shapes of its weights; `name` is for the message.

    Raises:
        ModelError: the weights are not those of such a model.
    """
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        text = {
            "context_length": tensors["positional_embedding"].shape[0],
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": _blocks(tensors, "transformer.resblocks."),
        }
        vision = _vit(tensors) if "visual.proj" in tensors else _resnet(tensors)
        embed_dim = tensors["text_projection"].shape[1]
    except KeyError as error:
        raise ModelError(f"{name} has no tensor {error}; it is no CLIP model of OpenAI") from error
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _vit(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    width, _, _, patch = tensors["visual.conv1.weight"].shape
    grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = _blocks(tensors, "visual.transformer.resblocks.")
    return {"layers": layers, "width": width, "patch_size": patch, "image_size": patch * grid}


def _resnet(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    grid = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "layers": [_blocks(tensors, f"visual.layer{number}.") for number in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "patch_size": None,
        "image_size": grid * 32,
    }


def _blocks(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
