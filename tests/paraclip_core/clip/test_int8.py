"""The text tower's ONNX in int8, and what it says of its loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip_core.clip import int8 as module
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.int8 import EVERYDAY, need_onnxruntime, quantize_onnx
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.onnx import ONNX_FILE, ONNX_TEXTS, save_onnx
from paraclip_core.clip.search import Searcher
from paraclip_core.clip.tokenizer import model_tokenizer
from paraclip_core.errors import ModelError

Tiny = Callable[..., ClipModel]


@pytest.fixture(scope="module")
def exported(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipModel, Path]:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    clip = tiny({"layers": 1})
    folder = tmp_path_factory.mktemp("onnx")
    save_onnx(clip, folder)
    return clip, folder


@pytest.mark.slow
def test_the_loss_is_what_onnxruntime_gives(exported: tuple[ClipModel, Path], tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    clip, source = exported
    folder = tmp_path / "int8"
    shutil.copytree(source, folder)
    features = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    loss = quantize_onnx(clip, folder, EVERYDAY, Searcher(features, [str(row) for row in range(60)]))
    assert json.loads((folder / ONNX_TEXTS).read_text())["int8"] == vars(loss)
    assert sorted(path.name for path in folder.iterdir()) == [ONNX_TEXTS, ONNX_FILE]
    assert loss.bytes == (folder / ONNX_FILE).stat().st_size < 0.3 * loss.fp32_bytes
    assert loss.fp32_bytes == (source / ONNX_FILE).stat().st_size
    kinds = {each.data_type for each in onnx.load(folder / ONNX_FILE).graph.initializer if np.prod(each.dims) > 10_000}
    assert kinds == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}

    vectors: list[Any] = []
    for path in (source, folder):  # the tower as exported beside that in int8, apart from torch
        session: Any = onnxruntime.InferenceSession(path / ONNX_FILE)
        ids = [model_tokenizer(clip)([text]).numpy() for text in EVERYDAY]
        vectors.append(np.concatenate([session.run(None, {"input_ids": each})[0] for each in ids]))
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    assert (loss.mean_cosine, loss.least_cosine) == pytest.approx((cosines.mean(), cosines.min()), abs=1e-5)
    assert 0.9 < loss.least_cosine < loss.mean_cosine < 1 and loss.texts == len(EVERYDAY)
    lists = [np.argsort(-each @ features.T)[:, :10] for each in vectors]
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]
    assert loss.same_of_ten == pytest.approx(np.mean(shared), abs=0.01)


@pytest.mark.slow
def test_a_tower_that_loses_too_much_is_refused(
    exported: tuple[ClipModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, source = exported
    folder = tmp_path / "int8"
    shutil.copytree(source, folder)
    # Half of each vector's length stands for an angle of 60 degrees.
    monkeypatch.setattr(module, "_encode", lambda *_: encode_texts(clip, EVERYDAY) * 0.5)
    with pytest.raises(ModelError, match=r"loses too much .* 24 texts is 0\.5000 .* at least 0\.98; .* without --int8"):
        quantize_onnx(clip, folder, EVERYDAY)
    assert "int8" not in json.loads((folder / ONNX_TEXTS).read_text())


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paraclip_core.clip.int8.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'paraclip\[export\]' onnxruntime"):
        need_onnxruntime()
