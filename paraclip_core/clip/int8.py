"""An exported ONNX text tower in int8, with the loss that it has on texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.onnx import ONNX_FILE, ONNX_TEXTS
from paraclip_core.clip.search import Searcher
from paraclip_core.clip.tokenizer import model_tokenizer
from paraclip_core.errors import ModelError, one_line

__all__ = ["EVERYDAY", "LEAST_MEAN", "Int8Loss", "need_onnxruntime", "quantize_onnx"]

LEAST_MEAN = 0.98
"""Mean cosine to the fp32 tower below which a tower is not written."""
DEPTH = 10

EVERYDAY = (
    "a dog runs along the beach", "two men in a small boat", "a child eats an apple", "a red bus in a busy street",
    "a woman reads a book in a cafe", "snow on a mountain at sunrise", "a cat asleep on a sofa", "a plate of pasta",
    "people wait at a train station", "a boy kicks a football", "an old stone bridge over a river",
    "a bicycle leans against a brick wall", "a group of friends around a campfire", "a bride and groom cut a cake",
    "a street market with fruit and vegetables", "a man in a blue jacket climbs a rock", "a surfer on a large wave",
    "a girl with an umbrella in the rain", "black and white photo of a piano player", "a horse jumps over a fence",
    "a kitchen with white cupboards", "three birds on a wire", "a plane above the clouds", "a lamp on a desk at night",
)  # fmt: skip
"""Texts to measure on where a model comes without captions."""


@dataclass(frozen=True)
class Int8Loss:
    """How far the int8 tower is from the fp32 one; each text is encoded alone, as a query is."""

    texts: int
    mean_cosine: float
    least_cosine: float
    bytes: int
    fp32_bytes: int
    same_of_ten: float | None = None
    """Mean share of the ten nearest images that both towers find; None without image features."""


def quantize_onnx(clip: ClipModel, folder: Path, texts: Sequence[str], images: Searcher | None = None) -> Int8Loss:
    """Put an int8 tower in place of the one that :func:`paraclip_core.clip.onnx.save_onnx` wrote.

    Matrices are int8, one scale for each column, in seven bits of range: with eight, processors without VNNI overflow.
    The table of token embeddings is uint8. onnxruntime quantizes activations as they come. The loss also goes into
    ``text_model.json``.

    Args:
        clip: the model that was exported.
        folder: with ``text_model.onnx`` and ``text_model.json``.
        texts: to measure on.
        images: features to rank.

    Raises:
        ModelError: onnxruntime is absent, or the mean cosine is below :data:`LEAST_MEAN`.
        OSError: the folder cannot be written.
    """
    path = folder / ONNX_FILE
    fp32_bytes = _size(path)
    _quantize(path, clip.reference)
    exact, rough = encode_texts(clip, texts).astype(np.float32), _encode(clip, path, texts)
    cosines = (exact * rough).sum(axis=1)
    mean, least = float(cosines.mean()), float(cosines.min())
    if not mean >= LEAST_MEAN:
        raise ModelError(
            f"{clip.reference} loses too much in int8: the mean cosine to its fp32 tower over {len(texts)} texts is "
            f"{mean:.4f} (least {least:.4f}), expected at least {LEAST_MEAN}; export it without --int8"
        )
    same = None
    if images is not None:
        ranked = [images.nearest(vectors, DEPTH)[0] for vectors in (exact, rough)]
        shares = [np.isin(a, b).mean() for a, b in zip(*ranked, strict=True)]
        same = float(np.mean(shares))
    loss = Int8Loss(len(texts), mean, least, _size(path), fp32_bytes, same)
    facts = json.loads((folder / ONNX_TEXTS).read_text("utf-8"))
    (folder / ONNX_TEXTS).write_text(json.dumps({**facts, "int8": asdict(loss)}, indent=2) + "\n", "utf-8")
    return loss


def need_onnxruntime() -> None:
    """See that onnxruntime is there, before the tower is exported.

    Raises:
        ModelError: it is not.
    """
    if find_spec("onnxruntime") is None:
        raise ModelError("int8 needs onnxruntime; run: pip install 'paraclip[export]' onnxruntime")


def _quantize(path: Path, name: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    draft = path.with_name(f".{path.name}.int8")
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # it advises on preparation that brings nothing here
        quantize_dynamic(path, draft, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    except OSError:
        raise
    except Exception as error:  # onnx's and onnxruntime's own
        raise ModelError(f"onnxruntime cannot quantize the text tower of {name}: {one_line(error)}") from error
    finally:
        root.setLevel(level)
    for old in path.parent.glob(f"{path.name}*"):  # weights beside a graph of more than 2 GB, too
        old.unlink()
    draft.replace(path)


def _encode(clip: ClipModel, path: Path, texts: Sequence[str]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(path, options)
    ids = model_tokenizer(clip)(list(texts)).numpy()
    return np.concatenate([session.run(None, {"input_ids": row[None]})[0] for row in ids])


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
