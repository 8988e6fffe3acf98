"""Interprets model references without importing torch, so that planning a run stays fast."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paraclip_core.errors import UnknownModelError
from paraclip_core.paths import expand

LOCAL, HUB = "local-dir:", "hf-hub:"
HUB_URL = "hf://"

CONFIG = "open_clip_config.json"
CONFIGS, TABLE = "model_configs", "pretrained.py"
"""In open_clip: the folder with a JSON file per architecture, and the table of their weights."""
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""File names of a release folder's weights, in order of preference."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

IMAGE_WEIGHTS = "efficientnet-lite0-57934424"
"""Identifies the built-in base's image encoder; part of the fingerprint of everything computed with it."""


def canonical(reference: str) -> str:
    """The reference with ``hf-hub:ORG/NAME`` in place of ``hf://ORG/NAME``."""
    return HUB + reference.removeprefix(HUB_URL).rstrip("/") if reference.startswith(HUB_URL) else reference


def local_folder(reference: str) -> Path | None:
    """The folder (or the weights file without an architecture) that a reference names; None for other references."""
    if reference.startswith(LOCAL):
        return expand(reference.removeprefix(LOCAL))
    if reference.startswith(HUB):
        return None
    return expand(reference) if ":" not in reference or Path(reference).is_dir() else None


def local_file(reference: str) -> tuple[str, Path] | None:
    """Architecture and weights of ``ARCHITECTURE:PATH``; None for references of another form."""
    if local_folder(reference) is not None or reference.startswith(HUB):
        return None
    architecture, _, path = reference.partition(":")
    return (architecture, expand(path)) if "/" in path or path.endswith(FILES) else None


def check_reference(reference: str) -> None:
    """Check a reference for mistakes without loading the model, before other stages cost money."""
    reference = canonical(reference)
    folder = local_folder(reference)
    if folder is not None and not folder.exists():
        raise UnknownModelError(
            f"model {reference!r}: {folder.absolute()} does not exist; expected built-in, a folder, {HUB}ORG/NAME, "
            f"ARCHITECTURE:TAG or ARCHITECTURE:FILE"
        )
    package = _open_clip()
    if folder is not None or reference.startswith(HUB) or package is None:
        return
    name = _architecture(reference)
    names = [path.stem for path in (package / CONFIGS).glob("*.json")]
    if names and name not in names:
        raise unknown_architecture(name, names)
    tags = pretrained_tags((package / TABLE).read_text("utf-8"), name)
    if tags and local_file(reference) is None and (tag := reference.rpartition(":")[2]) not in tags:
        raise UnknownModelError(f"{name} has no weights {tag!r}; available are: {', '.join(sorted(tags))}")


def pretrained_tags(table: str, architecture: str) -> list[str]:
    """open_clip's weights of an architecture, from its table's source; empty if the table defines them inline.

    The table is not executed, since that would import torch. Architectures with QuickGELU share the tags of those
    without.
    """
    variable = re.search(rf'"{re.escape(architecture.removesuffix("-quickgelu"))}": (\w+)', table)
    weights = variable and re.search(rf"^{variable[1]} = dict\((.*?)^\)", table, re.MULTILINE | re.DOTALL)
    return re.findall(r"^    (\w+)=", weights[1], re.MULTILINE) if weights else []


def _open_clip() -> Path | None:
    """The folder of open_clip's code; None if it is not installed."""
    spec = find_spec("open_clip")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _architecture(reference: str) -> str:
    """The architecture that ``ARCHITECTURE:TAG`` or ``ARCHITECTURE:FILE`` names."""
    file = local_file(reference)
    return reference.rpartition(":")[0] if file is None else file[0]


def unknown_architecture(name: str, names: Iterable[str]) -> UnknownModelError:
    """The error for a name that is not one of open_clip's architectures."""
    near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models()"
    return UnknownModelError(f"open_clip has no architecture {name!r}; {hint}")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder claims to hold a model of open_clip."""
    return (folder / CONFIG).is_file()


def model_files(reference: str) -> list[Path]:
    """The local files that define the model, including missing required ones; empty for a remote model."""
    file, place = local_file(reference), local_folder(reference)
    if file is not None:
        return [file[1]]
    if place is None:
        return []
    if place.is_file():
        return [place]
    weights = next((place / name for name in WEIGHTS if (place / name).is_file()), place / WEIGHTS[0])
    more = [place / name for name in TOKENIZER]
    return [place / CONFIG, weights, *(path for path in more if path.is_file())]


LOSSES = {
    False: "InfoNCE",
    True: "pairwise sigmoid between texts and images, as the base has a logit bias; InfoNCE between texts",
}
"""Descriptions of the losses against images and texts, by whether the base has a logit bias."""


def has_logit_bias(reference: str) -> bool | None:
    """Whether a model was trained with the pairwise sigmoid loss, by its configuration; None if it is not available."""
    config = _model_config(reference)
    return None if config is None else "init_logit_bias" in config


def embedding_width(reference: str) -> int | None:
    """The width of a model's embeddings, by its configuration; None if it is not available."""
    config = _model_config(reference)
    return None if config is None else int(config["embed_dim"])


def _model_config(reference: str) -> dict[str, Any] | None:
    """open_clip's configuration of a model, if it is on this machine."""
    folder, package = local_folder(reference), _open_clip()
    if folder is not None:
        path = folder / CONFIG
    else:
        path = None if package is None else package / CONFIGS / f"{_architecture(reference)}.json"
    if path is None or not path.is_file():
        return None
    stored = json.loads(path.read_text("utf-8"))
    return stored.get("model_cfg", stored)


def place_free_name(reference: str) -> str:
    """The reference without the paths of local files, which are identified by their hashes."""
    file = local_file(reference)
    if file is not None:
        return f"{file[0]}:local"
    return reference if local_folder(reference) is None else "local"


def fixed_place(reference: str) -> str:
    """The reference with absolute paths of local files."""
    file, folder = local_file(reference), local_folder(reference)
    if file is not None:
        return f"{file[0]}:{file[1].absolute()}"
    return reference if folder is None else f"{LOCAL}{folder.absolute()}"


def tokenizer_reference(reference: str) -> str:
    """The name by which open_clip finds the model's tokenizer."""
    folder = local_folder(reference)
    if folder is not None:
        return f"{LOCAL}{folder}"
    return reference if reference.startswith(HUB) else reference.partition(":")[0]
