"""Weights in every published format, from files made here; and files that are damaged or hostile."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.export import save_release
from paraclip_core.clip.formats import is_torchscript, read_torchscript, read_weights
from paraclip_core.clip.hf_format import from_hf, to_hf
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


def test_the_log_says_which_activation_a_file_gets(
    known: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick = f"{ARCHITECTURE}-quickgelu"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, quick, {**known.model_cfg, "quick_gelu": True})
    file = tmp_path / "w.safetensors"
    save_file(known.model.state_dict(), file)
    _openai_archive(known, tmp_path / "archive.pt")
    for reference, told in (
        (f"{ARCHITECTURE}:{file}", f"{ARCHITECTURE} has GELU"),
        (f"{quick}:{file}", f"{quick} has QuickGELU"),
        (f"{ARCHITECTURE}:{tmp_path / 'archive.pt'}", "its activation is QuickGELU"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", "paraclip_core.clip.load"):
            clip = load_clip(reference)
        assert [told in message for message in caplog.messages] == [True]
        assert bool(clip.model_cfg.get("quick_gelu")) is ("QuickGELU" in told)


def test_the_older_layout_of_custom_text_models(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny(custom_text=True)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, ARCHITECTURE, clip.model_cfg)
    tensors = {name.removeprefix("text."): tensor for name, tensor in clip.model.state_dict().items()}
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    save_file(tensors, tmp_path / "w.safetensors")
    same(load_clip(f"{ARCHITECTURE}:{tmp_path / 'w.safetensors'}"), clip)


def _openai_archive(clip: ClipModel, path: Path) -> None:
    """As OpenAI published its models: traced, in half precision, with three numbers as buffers."""
    model: Any = clip.model
    for name, value in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    model.half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is old-fashioned, and warns of it
        shell: Any = torch.jit.trace(_Holder(model), torch.zeros(1))
        torch.jit.save(shell.model, path)
    model.float()


class _Holder(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + sum(parameter.float().sum() for parameter in self.model.parameters())


def test_openais_archives(known: ClipModel, tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-32.pt"
    _openai_archive(known, file)
    assert is_torchscript(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(file).state_dict()
    found = read_torchscript(file)
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name

    # In OpenAI's own code the mask was no buffer.
    expected = {name: tensor for name, tensor in expected.items() if name != "attn_mask"}
    stock = open_clip.model.build_model_from_openai_state_dict(dict(expected), cast_dtype=torch.float32).float()
    with torch.no_grad():
        texts = F.normalize(stock.encode_text(open_clip.SimpleTokenizer()(TEXTS)), dim=-1).numpy()
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        images = stock.encode_image(pixels)
    for reference in (str(file), f"local-dir:{file}", f"{ARCHITECTURE}:{file}"):
        clip = load_clip(reference)
        assert clip.model_cfg["quick_gelu"] is True and clip.model.logit_scale.dtype == torch.float32
        np.testing.assert_allclose(encode_texts(clip, TEXTS), texts, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(clip.model.encode_image(pixels), images, atol=1e-5, rtol=1e-4)  # type: ignore[operator]
    save_release(clip, tmp_path / "release", "card")
    same(load_clip(str(tmp_path / "release")), clip)


def test_resnets_of_openai_tell_their_shape_too(tmp_path: Path, tiny: Tiny) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None, "head_width": 64}
    clip = tiny({"width": 64, "heads": 1}, vision_cfg=vision, quick_gelu=True)
    _openai_archive(clip, tmp_path / "RN.pt")
    loaded = load_clip(str(tmp_path / "RN.pt"))
    assert {**loaded.model_cfg["vision_cfg"], "head_width": 64} == vision
    assert image_tower_hash(loaded) == image_tower_hash(_rounded(clip))


def _rounded(clip: ClipModel) -> ClipModel:
    clip.model.half().float()
    return clip


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hugging_face_folders(activation: str, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "hidden_act": activation, "eos_token_id": 49407},
        vision_config={**sizes, "image_size": 32, "patch_size": 16, "hidden_act": activation, "layer_norm_eps": 1e-6},
        projection_dim=48,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs: Any = CLIPModel(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path)
    preprocess = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "do_center_crop": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocess))

    clip = load_clip(f"local-dir:{tmp_path}")
    ids = open_clip.SimpleTokenizer()(TEXTS)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = theirs(input_ids=ids, pixel_values=pixels)
        texts, images = output.text_embeds.numpy(), output.image_embeds
        own = F.normalize(clip.model.encode_image(pixels), dim=-1)  # type: ignore[operator]
    np.testing.assert_allclose(encode_texts(clip, TEXTS), texts, atol=1e-5)
    torch.testing.assert_close(own, images, atol=1e-5, rtol=0)
    assert clip.preprocess_cfg["mean"] == [0.1, 0.2, 0.3] and clip.preprocess_cfg["interpolation"] == "bilinear"
    assert [path.name for path in model_files(str(tmp_path))] == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    stored = theirs.state_dict()
    back = to_hf(from_hf(stored))
    assert back.keys() == stored.keys() and all(torch.equal(back[name], stored[name]) for name in stored)
    save_release(clip, tmp_path / "release", "card")
    same(load_clip(str(tmp_path / "release")), clip)


def test_hugging_face_folders_of_other_models(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for config, message in (
        ("{", "cannot read"),
        ("[]", "no JSON object"),
        ('{"model_type": "siglip"}', "of type 'siglip'.*use open_clip's release"),
        ('{"model_type": "clip", "text_config": {"hidden_act": "relu"}}', "the activations"),
        ('{"model_type": "clip", "text_config": {"hidden_size": "many"}}', "does not describe"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ModelError, match=message):
            load_clip(str(tmp_path))


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def _hostile_archive(path: Path, listing: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", listing)
        archive.writestr("m/constants.pkl", b"")


def test_hostile_files_are_not_run(known: ClipModel, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": _Bomb(mark)}, tmp_path / "a.pt")
    torch.save({"state_dict": _Bomb(mark)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(_Bomb(mark)))
    _hostile_archive(tmp_path / "d.pt", pickle.dumps(_Bomb(mark), protocol=2))
    # Names that only look as if they came from compiled code, and what the reader itself uses.
    for number, name in enumerate(
        ("builtins eval", "__torch__ system", "torch._utils _import_dotted_name", "os system")
    ):
        module, attribute = name.split()
        code = f"c{module}\n{attribute}\n(S'{mark}'\ntR.".encode()
        _hostile_archive(tmp_path / f"e{number}.pt", code)
    for file in sorted(tmp_path.glob("*.pt")):
        with pytest.raises(ModelError, match=file.name):
            load_clip(f"{ARCHITECTURE}:{file}")
    assert not mark.exists()


def test_damaged_files_are_told(known: ClipModel, tmp_path: Path) -> None:
    torch.save({"state_dict": known.model.state_dict()}, tmp_path / "w.pt")
    save_file(known.model.state_dict(), tmp_path / "w.safetensors")
    _openai_archive(known, tmp_path / "jit.pt")
    for name in ("w.pt", "w.safetensors", "jit.pt"):
        whole = (tmp_path / name).read_bytes()
        for number, damaged in enumerate((b"", b"garbage", whole[: len(whole) // 2], whole[:-30], whole[500:])):
            file = tmp_path / f"{number}-{name}"
            file.write_bytes(damaged)
            with pytest.raises(ModelError, match=file.name):
                load_clip(f"{ARCHITECTURE}:{file}")
    with pytest.raises(ModelError, match="no weights file"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'absent.pt'}")
    np.savez(tmp_path / "webli.npz", x=np.zeros(3))
    with pytest.raises(ModelError, match="big_vision's format"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'webli.npz'}")
    with pytest.raises(ModelError, match="ARCHITECTURE:"):
        load_clip(str(tmp_path / "w.pt"))
    with pytest.raises(ModelError, match="no architecture 'Tiny-B-23'; did you mean"):
        load_clip(f"Tiny-B-23:{tmp_path / 'w.pt'}")


def test_weights_of_another_model_are_told(known: ClipModel, tiny: Tiny, tmp_path: Path) -> None:
    tensors = known.model.state_dict()
    for file, content, message in (
        ("other.pt", tiny().model.state_dict(), "does not fit Tiny-B-32"),
        ("laclip.pt", {**tensors, "image_projection": torch.zeros(2)}, "LAION-400M"),
        ("list.pt", [1, 2], "holds a list"),
        ("empty.pt", {"epoch": 3}, "no tensors by name"),
    ):
        torch.save(content, tmp_path / file)
        with pytest.raises(ModelError, match=message):
            load_clip(f"{ARCHITECTURE}:{tmp_path / file}")
    # Another resolution would need the positional table stretched, which is another image tower.
    stretched = {**tensors, "visual.positional_embedding": torch.zeros(17, 64)}
    torch.save(stretched, tmp_path / "larger.pt")
    with pytest.raises(ModelError, match="positional_embedding"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'larger.pt'}")


def test_archives_that_claim_too_much(known: ClipModel, tmp_path: Path) -> None:
    _openai_archive(known, tmp_path / "jit.pt")
    with zipfile.ZipFile(tmp_path / "jit.pt") as source, zipfile.ZipFile(tmp_path / "packed.pt", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="packed"):
        read_weights(tmp_path / "packed.pt")


@given(st.binary(max_size=200))
def test_garbage_in_an_archive_is_an_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, code: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.pt"
    _hostile_archive(file, code)
    with pytest.raises(ModelError):
        read_weights(file)


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
