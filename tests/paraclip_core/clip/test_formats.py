"""Weights in every published format, from files made here; and files that are damaged or hostile."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_tower_hash
from paraclip_core.clip.reference import local_file, model_files, place_free_name, tokenizer_reference
from paraclip_core.errors import ModelError

Tiny = Callable[..., ClipModel]
TEXTS = ["a dog on a beach", "two men & a boat", "A"]
ARCHITECTURE = "Tiny-B-32"
HEADS_OF_64 = {"width": 64, "head_width": 64}


@pytest.fixture
def known(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> ClipModel:
    """A model whose architecture open_clip knows by name; every head is 64 wide, as in OpenAI's models."""
    clip = tiny({"width": 64, "heads": 1}, vision_cfg={**VISION, **HEADS_OF_64})
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, ARCHITECTURE, clip.model_cfg)
    return clip


VISION = {"image_size": 32, "layers": 2, "patch_size": 16}


def same(found: ClipModel, expected: ClipModel) -> None:
    """The two models are one."""
    assert image_tower_hash(found) == image_tower_hash(expected)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    np.testing.assert_array_equal(encode_texts(found, TEXTS), encode_texts(expected, TEXTS))


def test_checkpoints_of_training_scripts(known: ClipModel, tmp_path: Path) -> None:
    tensors = known.model.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in tensors.items()}
    # open_clip's and LaCLIP's training scripts.
    torch.save({"epoch": 32, "name": "run", "state_dict": parallel, "optimizer": {}}, tmp_path / "open_clip.pt")
    args = argparse.Namespace(model="CLIP_VITB32", lr=1e-3)
    torch.save({"epoch": 3, "state_dict": parallel, "best_acc1": 64.4, "args": args}, tmp_path / "laclip.pt")
    torch.save(tensors, tmp_path / "plain.bin")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "weights.safetensors")
    for name in ("open_clip.pt", "laclip.pt", "plain.bin", "old.pth", "weights.safetensors"):
        same(load_clip(f"{ARCHITECTURE}:{tmp_path / name}"), known)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(known: ClipModel, tmp_path: Path, value: float) -> None:
    tensors = dict(known.model.state_dict())
    tensors["ln_final.weight"] = torch.full_like(tensors["ln_final.weight"], value)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors has weights .* in ln_final\.weight"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'w.safetensors'}")


def _openai_archive(clip: ClipModel, path: Path) -> None:
    """As OpenAI published its models: traced, in half precision, with three numbers as buffers and no mask."""
    model: Any = clip.model
    mask = model._buffers.pop("attn_mask")
    for name, value in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    model.half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is old-fashioned, and warns of it
        shell: Any = torch.jit.trace(_Holder(model), torch.zeros(1))
        torch.jit.save(shell.model, path)
    model.float().register_buffer("attn_mask", mask, persistent=False)


class _Holder(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + sum(parameter.float().sum() for parameter in self.model.parameters())


def test_openais_archives_are_converted_once(known: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _openai_archive(known, tmp_path / "archive.pt")
    page = (Path(__file__).parents[3] / "docs/tuned-model.md").read_text("utf-8").partition("## OpenAI's own files")[2]
    with pytest.raises(ModelError, match=r"archive\.pt .*docs/tuned-model\.md"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'archive.pt'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is leaving TorchScript
        exec(page.partition("```python\n")[2].partition("```")[0], {})
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, ARCHITECTURE, {**known.model_cfg, "quick_gelu": True})
    loaded = load_clip(f"{ARCHITECTURE}:{tmp_path / 'base.pt'}")
    assert image_tower_hash(loaded) == image_tower_hash(_rounded(known))


def _rounded(clip: ClipModel) -> ClipModel:
    clip.model.half().float()
    return clip


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_hostile_files_are_not_run(known: ClipModel, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": _Bomb(mark)}, tmp_path / "a.pt")
    torch.save({"state_dict": _Bomb(mark)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(_Bomb(mark)))
    for file in sorted(tmp_path.glob("*.pt")):
        with pytest.raises(ModelError, match=file.name):
            load_clip(f"{ARCHITECTURE}:{file}")
    assert not mark.exists()


def test_damaged_files_are_told(known: ClipModel, tmp_path: Path) -> None:
    torch.save({"state_dict": known.model.state_dict()}, tmp_path / "w.pt")
    save_file(known.model.state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for number, damaged in enumerate((b"", b"garbage", whole[: len(whole) // 2], whole[:-30], whole[500:])):
            file = tmp_path / f"{number}-{name}"
            file.write_bytes(damaged)
            with pytest.raises(ModelError, match=file.name):
                load_clip(f"{ARCHITECTURE}:{file}")
    with pytest.raises(ModelError, match="no weights file"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'absent.pt'}")
    with pytest.raises(ModelError, match="ARCHITECTURE:"):
        load_clip(str(tmp_path / "w.pt"))
    with pytest.raises(ModelError, match="no architecture 'Tiny-B-23'; did you mean"):
        load_clip(f"Tiny-B-23:{tmp_path / 'w.pt'}")


def test_weights_of_another_model_are_told(known: ClipModel, tiny: Tiny, tmp_path: Path) -> None:
    for file, content in (("other.pt", tiny().model.state_dict()), ("list.pt", [1, 2]), ("empty.pt", {"epoch": 3})):
        torch.save(content, tmp_path / file)
        with pytest.raises(ModelError, match="does not fit Tiny-B-32"):
            load_clip(f"{ARCHITECTURE}:{tmp_path / file}")


def test_what_references_mean(tmp_path: Path) -> None:
    assert local_file("ViT-B-32:laion2b_s34b_b79k") is None and local_file("hf-hub:org/name") is None
    assert local_file("ViT-B-32:/data/w.pt") == ("ViT-B-32", Path("/data/w.pt"))
    assert local_file("ViT-B-32:w.safetensors") == ("ViT-B-32", Path("w.safetensors"))
    assert local_file(str(tmp_path)) is None
    assert place_free_name("ViT-B-32:/data/w.pt") == "ViT-B-32:local"
    assert place_free_name("local-dir:/data/m") == place_free_name("/data/m.pt") == "local"
    assert place_free_name("ViT-B-32:openai") == "ViT-B-32:openai"
    assert tokenizer_reference("hf-hub:org/name") == "hf-hub:org/name"
    assert tokenizer_reference("ViT-B-32:/data/w.pt") == tokenizer_reference("ViT-B-32:openai") == "ViT-B-32"
    assert tokenizer_reference(f"local-dir:{tmp_path}") == f"local-dir:{tmp_path}"
    assert model_files("ViT-B-32:openai") == [] and model_files("ViT-B-32:/d/w.pt") == [Path("/d/w.pt")]
    assert [path.name for path in model_files(str(tmp_path))] == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
