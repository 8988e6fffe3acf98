"""Building, freezing, saving, loading and naming models."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from paraclip_core.clip import load
from paraclip_core.clip.encode import encode_images, encode_texts
from paraclip_core.clip.fold import folded
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.models import (
    ClipModel,
    embedded_clip,
    freeze_image_tower,
    image_tower_hash,
    load_clip,
    pick_device,
    preprocess_hash,
    save_release,
)
from paraclip_core.config import ModelOptions
from paraclip_core.errors import ConfigError, ModelError

SMALL = ModelOptions(text_width=64, text_layers=2, text_heads=2, embed_dim=32)
TEXTS = ["a dog on a beach", "two men & a boat", "A"]
WEIGHTS = "open_clip_model.safetensors"

Tiny = Callable[..., ClipModel]


def test_the_embedded_model_follows_its_options_only() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = embedded_clip(SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = embedded_clip(SMALL)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    wider = embedded_clip(SMALL.model_copy(update={"text_width": 32, "text_layers": 1}))
    assert image_tower_hash(wider) == image_tower_hash(first)
    assert preprocess_hash(wider) == preprocess_hash(first)
    assert image_tower_hash(embedded_clip(SMALL.model_copy(update={"seed": 1}))) != image_tower_hash(first)


@pytest.mark.parametrize("embed_dim", [32, 1280, 1500])
def test_the_projection_is_orthonormal(embed_dim: int) -> None:
    visual: Any = embedded_clip(SMALL.model_copy(update={"embed_dim": embed_dim})).visual
    weight = visual.head.proj.weight.detach().double()
    gram = weight @ weight.T if embed_dim <= 1280 else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_trunk_tells_real_objects_apart(data_root: Path) -> None:
    """The pretrained weights sit where they belong: captions' dogs are near dogs, not near anything."""
    captions = json.loads((data_root / "flickr8k/dataset_flickr8k.json").read_text())["images"]
    text = {f"images/{row['filename']}": " ".join(s["raw"].lower() for s in row["sentences"]) for row in captions[:600]}
    dogs = [name for name, words in text.items() if words.count(" dog ") >= 4][:8]
    others = [name for name, words in text.items() if "dog" not in words and "man" in words][:8]
    with ImageArchive(data_root / "flickr8k/images_128.tar") as images:
        features = encode_images(embedded_clip(ModelOptions()), (images.open(name) for name in dogs + others))
    cosines = features.astype(np.float32) @ features.astype(np.float32).T
    np.fill_diagonal(cosines, np.nan)
    assert np.nanmean(cosines[:8, :8]) > np.nanmean(cosines[:8, 8:]) + 0.05


def test_a_frozen_tower_stays_frozen(tiny: Tiny) -> None:
    clip = embedded_clip(SMALL)
    freeze_image_tower(clip)
    before = image_tower_hash(clip)
    clip.model.train()
    assert not any(module.training for module in clip.visual.modules())
    assert clip.model.get_submodule("transformer").training
    assert not any(parameter.requires_grad for parameter in clip.visual.parameters())
    clip.model.encode_image(torch.randn(2, 3, 224, 224))  # type: ignore[operator]
    assert image_tower_hash(clip) == before
    twin = copy.deepcopy(clip)
    twin.model.train()
    assert not twin.visual.training


@pytest.mark.parametrize("change", ["weight", "buffer", "name"])
def test_the_hash_sees_every_tensor(change: str) -> None:
    clip = embedded_clip(SMALL)
    before = image_tower_hash(clip)
    visual: Any = clip.visual
    with torch.no_grad():
        if change == "weight":
            visual.head.proj.weight[3, 5].nextafter_(torch.tensor(2.0))
        elif change == "buffer":
            visual.trunk.bn2.running_var[0] += 1e-3
        else:
            visual.register_buffer("more", torch.zeros(1))
    assert image_tower_hash(clip) != before
    assert len(before) == 32


def test_the_hash_leaves_the_text_tower_out() -> None:
    clip = embedded_clip(SMALL)
    before = image_tower_hash(clip)
    with torch.no_grad():
        clip.model.get_parameter("text_projection").zero_()
    assert image_tower_hash(clip) == before


@pytest.mark.parametrize("kind", ["embedded", "vit", "quick-gelu", "custom-text"])
def test_stock_open_clip_loads_a_release(tiny: Tiny, kind: str, tmp_path: Path, data_root: Path) -> None:
    clip = {
        "embedded": lambda: embedded_clip(SMALL),
        "vit": tiny,
        "quick-gelu": lambda: tiny(quick_gelu=True),
        "custom-text": lambda: tiny(custom_text=True),
    }[kind]()
    save_release(clip, tmp_path / "a", "# A card\n")
    save_release(clip, tmp_path / "b", "# A card\n")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", "open_clip_config.json", WEIGHTS]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    with ImageArchive(data_root / "flickr8k/images_128.tar") as archive:
        images = [archive.open(name) for name in archive.names()[:3]]

    parts: Any = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'a'}")
    model, _, preprocess = parts
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'a'}")
    model.eval()
    with torch.no_grad():
        texts = F.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1).numpy()
        pixels = F.normalize(model.encode_image(torch.stack([preprocess(i) for i in images])), dim=-1).numpy()
    np.testing.assert_allclose(texts, encode_texts(clip, TEXTS), atol=1e-5)
    np.testing.assert_allclose(pixels, encode_images(clip, images).astype(np.float32), atol=1e-3)

    for reference in (str(tmp_path / "a"), f"local-dir:{tmp_path / 'a'}"):
        loaded = load_clip(reference)
        assert image_tower_hash(loaded) == image_tower_hash(clip)
        assert preprocess_hash(loaded) == preprocess_hash(clip)
        assert loaded.model_cfg == clip.model_cfg and not loaded.model.training
        np.testing.assert_array_equal(encode_texts(loaded, TEXTS), encode_texts(clip, TEXTS))
    save_release(loaded, tmp_path / "c", "# A card\n")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in names)


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
    for wrong in ({"mean": "x"}, {"mean": [0.5, 0.5]}, {"mean": [math.nan] * 3}, {"std": [0] * 3}, {"resize_mode": 1}):
        plain = json.loads(settings)
        plain["preprocess_cfg"] |= wrong
        config.write_text(json.dumps(plain))
        with pytest.raises(ModelError, match="how it sees images"):
            load_clip(str(folder))
    config.write_text(settings.replace('"width": 64', '"width": 128'))
    with pytest.raises(ModelError, match="does not fit"):
        load_clip(str(folder))
    with pytest.raises(ModelError, match="no model folder"):
        load_clip(str(tmp_path / "absent"))
    assert torch.equal(torch.random.get_rng_state(), before)


def load_file_bytes(data: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "whole.safetensors").write_bytes(data)
    return load_file(folder / "whole.safetensors")


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_is_not_run(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_release(tiny(), folder, "card")
    (folder / WEIGHTS).unlink()
    torch.save({"state_dict": _Bomb(tmp_path / "mark")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"open_clip_pytorch_model\.bin"):
        load_clip(str(folder))
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_not_finite_are_not_released(tiny: Tiny, tmp_path: Path) -> None:
    clip = tiny()
    with torch.no_grad():
        clip.model.get_parameter("ln_final.weight")[0] = float("inf")
    with pytest.raises(ModelError, match=r"ln_final\.weight"):
        save_release(clip, tmp_path / "m", "card")
    assert not (tmp_path / "m" / WEIGHTS).exists()


def test_weights_that_cannot_be_written_are_said(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS / "in the way").mkdir(parents=True)
    with pytest.raises(ModelError, match=f"cannot write .*{WEIGHTS}: .*; free some space"):
        save_release(tiny(), tmp_path, "card")
    assert not list(tmp_path.glob(".*"))


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean ViT-B-32"):
        load_clip("ViT-B32:openai")
    with pytest.raises(ModelError, match="laion400m_e32"):
        load_clip("ViT-B-32:laion400m")
    with pytest.raises(ModelError, match="use ViT-B-32:laion2b_s34b_b79k"):
        _tag_is_known("ViT-B-32-quickgelu", "laion2b_s34b_b79k")


def _tag_is_known(architecture: str, tag: str) -> None:
    """open_clip lists a tag under one architecture; a user may still put it after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: [tag])
        patch.setattr(
            open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": name.endswith("-quickgelu") and False}
        )
        load_clip(f"{architecture}:{tag}")


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


def test_folding_changes_nothing_but_rounding(tiny: Tiny) -> None:
    clip = embedded_clip(SMALL)
    before = image_tower_hash(clip)
    tower = folded(clip.visual, (224, 224))
    assert tower is not clip.visual and image_tower_hash(clip) == before
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tower.modules())
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(tower(pixels), clip.visual(pixels), atol=1e-4, rtol=1e-3)
    assert folded(tiny().visual, (32, 32)) is not tower
    plain = tiny().visual
    assert folded(plain, (32, 32)) is plain


def test_towers_that_run_their_children_in_another_order_are_left_alone() -> None:
    class Crossed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
            torch.nn.init.uniform_(self.norm.running_var)  # type: ignore[arg-type]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(x).relu()).flatten(1)

    crossed = Crossed().eval()
    assert folded(crossed, (8, 8)) is crossed


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:99", "mps:99", "meta"):
        with pytest.raises(ConfigError, match=wrong):
            pick_device(wrong)
