"""Loading models: damaged files, names, the hub, activations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from paraclip_core.clip import load
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel
from paraclip_core.config import ModelOptions
from paraclip_core.errors import ModelError

SMALL = ModelOptions(text_width=64, text_layers=2, embed_dim=32)
TEXTS = ["a dog on a beach", "two men & a boat", "A"]
WEIGHTS = "open_clip_model.safetensors"

Tiny = Callable[..., ClipModel]


def test_damaged_folders_are_told_by_file(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_release(tiny(), folder, "card")
    weights, config = folder / WEIGHTS, folder / "open_clip_config.json"
    whole, settings = weights.read_bytes(), config.read_text()
    before = torch.random.get_rng_state()

    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"\x80\x04" + whole):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match=WEIGHTS):
            load_clip(str(folder))
    tensors = load_file_bytes(whole, tmp_path)
    tensors.pop("ln_final.weight")
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"ln_final\.weight"):
        load_clip(str(folder))
    weights.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_clip(str(folder))
    weights.write_bytes(whole)
    towers = '{"model_cfg": {"embed_dim": 3, "vision_cfg": 1, "text_cfg": "x"}}'
    for damaged in ("{", "[]", '{"model_cfg": {"embed_dim": 3}}', towers, "[" * 100_000):
        config.write_text(damaged)
        with pytest.raises(ModelError, match=r"open_clip_config\.json"):
            load_clip(str(folder))
    config.write_text(settings.replace('"width": 64', '"width": 128'))
    with pytest.raises(ModelError, match="does not fit"):
        load_clip(str(folder))
    with pytest.raises(ModelError, match="absent does not exist; expected embedded, a folder"):
        load_clip(str(tmp_path / "absent"))
    assert torch.equal(torch.random.get_rng_state(), before)


def load_file_bytes(data: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "whole.safetensors").write_bytes(data)
    return load_file(folder / "whole.safetensors")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean ViT-B-32"):
        load_clip("ViT-B32:openai")
    with pytest.raises(ModelError, match="laion400m"):
        load_clip("ViT-B-32:laion400m")


def test_weights_of_another_activation_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": False})
    with pytest.raises(ModelError, match="use ViT-B-32:openai"):
        load_clip("ViT-B-32-quickgelu:openai")


@pytest.mark.parametrize("reference", ["ViT-B-32:laion400m_e32", "hf-hub:laion/no-such-model"])
def test_offline_is_told(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", offline)
    logging.getLogger().setLevel(logging.WARNING)
    with pytest.raises(ModelError, match=f"{reference}.*local-dir:FOLDER.*no route to host"):
        load_clip(reference)


def test_quick_gelu_is_turned_on_for_weights_that_need_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip only warns when `ViT-B-32` meets `laion400m_e32`, and the model is then worse."""
    source = tiny(quick_gelu=True)
    save_file(source.model.state_dict(), tmp_path / "weights.safetensors")
    plain = {name: value for name, value in source.model_cfg.items() if name != "quick_gelu"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", plain)
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(tmp_path / "weights.safetensors"))
    clip = load_clip("ViT-B-32:laion400m_e32")
    assert clip.model_cfg["quick_gelu"] is True
    np.testing.assert_array_equal(encode_texts(clip, TEXTS), encode_texts(source, TEXTS))
    save_release(clip, tmp_path / "release", "card")
    again = load_clip(str(tmp_path / "release"))
    np.testing.assert_array_equal(encode_texts(again, TEXTS), encode_texts(source, TEXTS))
    assert load.local_folder("ViT-B-32:laion400m_e32") is None


def test_the_hubs_commit_is_noted(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny(quick_gelu=True)
    save_file(source.model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", source.model_cfg)
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(tmp_path / "weights.safetensors"))
    asked: list[str] = []

    def cached(name: str, file: str) -> str | None:
        asked.append(name)
        return f"/cache/snapshots/1a25a446/{file}" if file.endswith(".bin") else None

    monkeypatch.setattr(load, "try_to_load_from_cache", cached)
    clip = load_clip("ViT-B-32-quickgelu:laion400m_e32")
    known: Any = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "laion400m_e32")
    assert clip.hub_name == known["hf_hub"].rstrip("/") and set(asked) == {clip.hub_name}
    assert clip.revision == "1a25a446"
