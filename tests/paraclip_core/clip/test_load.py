"""Loading models: published formats, damaged and hostile files, names, the hub, activations."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.reference import (
    check_reference,
    local_file,
    local_folder,
    model_files,
    place_free_name,
    pretrained_tags,
    tokenizer_reference,
)
from paraclip_core.errors import ModelError

TEXTS = ["a dog on a beach", "two men & a boat", "A"]
WEIGHTS = "open_clip_model.safetensors"
ARCHITECTURE = "Tiny-B-32"

Tiny = Callable[..., ClipModel]
Named = Callable[[str, dict[str, Any]], None]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """Makes an architecture known to open_clip, or another one of a known name."""
    return lambda name, config: monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


@pytest.fixture
def known(tiny: Tiny, named: Named) -> ClipModel:
    """A model whose architecture open_clip knows by name; every head is 64 wide, as in OpenAI's models."""
    vision = {"image_size": 32, "layers": 2, "patch_size": 16, "width": 64, "head_width": 64}
    clip = tiny({"width": 64, "heads": 1, "vocab_size": 400}, vision_cfg=vision)
    named(ARCHITECTURE, clip.model_cfg)
    return clip


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is here of the hub, which cannot be reached: nothing yet."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors", WEIGHTS])
def test_damaged_weights_are_reported(file: str, known: ClipModel, tmp_path: Path) -> None:
    save_release(known, tmp_path, "card")
    torch.save({"state_dict": known.model.state_dict()}, tmp_path / "w.pt")
    save_file(known.model.state_dict(), tmp_path / "w.safetensors")
    whole, before = (tmp_path / file).read_bytes(), torch.random.get_rng_state()
    cut = [whole[:end] for end in (100, len(whole) // 2, -30, -1)]
    for damaged in (b"", b"garbage", *cut, whole[500:], b"\x80\x04" + whole):
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(ModelError, match=file):
            load_clip(str(tmp_path) if file == WEIGHTS else f"{ARCHITECTURE}:{tmp_path / file}")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_damaged_folders_are_told_by_file(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_release(tiny(), folder, "card")
    weights, config = folder / WEIGHTS, folder / "open_clip_config.json"
    whole, settings = weights.read_bytes(), config.read_text()

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load_clip(str(folder))

    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items() if name != "ln_final.weight"}
    save_file(tensors, weights)
    refused(r"ln_final\.weight")
    weights.unlink()
    refused("has no weights")
    weights.write_bytes(whole)
    encoders = '{"model_cfg": {"embed_dim": 3, "vision_cfg": 1, "text_cfg": "x"}}'
    for damaged in ("{", "[]", '{"model_cfg": {"embed_dim": 3}}', encoders, "[" * 100_000):
        config.write_text(damaged)
        refused(r"open_clip_config\.json")
    config.write_text(settings.replace('"width": 64', '"width": 128'))
    refused("does not fit")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent", "does not exist"),
        ("ViT-B32:openai", "no architecture"),
        ("ViT-B-32:laion400m", "has no weights 'laion400m'"),
        ("ViT-B-32-quickgelu:laion2b_s34b_b79k", "use ViT-B-32:laion2b_s34b_b79k"),
        ("Tiny-B-23:weights.pt", "no architecture"),
        ("ViT-B-32:absent.pt", "no weights file"),
        ("./weights.pt", "use ARCHITECTURE:"),
        # Offline.
        ("ViT-B-32:laion400m_e32", "ViT-B-32:laion400m_e32.*local-dir:FOLDER.*: .*cache"),
        ("hf-hub:laion/no-such-model", "hf-hub:laion/no-such-model.*local-dir:FOLDER.*: .*cache"),
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_what_names_no_model_that_is_here_is_refused(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_clip(reference)


def test_quick_gelu_is_turned_on_and_the_hubs_commit_noted(
    tiny: Tiny, named: Named, hub_cache: Path, tmp_path: Path
) -> None:
    """open_clip only warns when `ViT-B-32` meets `laion400m_e32`, and the model is then worse."""
    source = tiny(quick_gelu=True)
    named("ViT-B-32", {name: value for name, value in source.model_cfg.items() if name != "quick_gelu"})
    config: Any = open_clip.get_pretrained_cfg("ViT-B-32", "laion400m_e32")
    hub_name, commit = config["hf_hub"].rstrip("/"), "1a25a446" * 5
    stored = hub_cache / f"models--{hub_name.replace('/', '--')}"
    (stored / "snapshots" / commit).mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    torch.save(source.model.state_dict(), stored / "snapshots" / commit / "open_clip_pytorch_model.bin")
    clip = load_clip("ViT-B-32:laion400m_e32")
    assert (clip.model_cfg["quick_gelu"], clip.hub_name, clip.revision) == (True, hub_name, commit)
    save_release(clip, tmp_path / "release", "card")
    for loaded in (clip, load_clip(str(tmp_path / "release"))):
        np.testing.assert_array_equal(encode_texts(loaded, TEXTS), encode_texts(source, TEXTS))


def test_checkpoints_of_training_scripts(known: ClipModel, tmp_path: Path) -> None:
    tensors = known.model.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in tensors.items()}
    args = argparse.Namespace(model="CLIP_VITB32", lr=1e-3)
    saved: dict[str, dict[str, Any]] = {
        "open_clip.pt": {"epoch": 32, "name": "run", "state_dict": parallel, "optimizer": {}},
        "laclip.pt": {"epoch": 3, "state_dict": parallel, "best_acc1": 64.4, "args": args},
        "plain.bin": tensors,
    }
    for file, content in saved.items():
        torch.save(content, tmp_path / file)
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "weights.safetensors")
    for file in (*saved, "old.pth", "weights.safetensors"):
        clip = load_clip(f"{ARCHITECTURE}:{tmp_path / file}")
        assert image_encoder_hash(clip) == image_encoder_hash(known)
        for name, tensor in tensors.items():
            assert torch.equal(clip.model.state_dict()[name], tensor), name


def test_weights_that_are_no_numbers_or_of_another_model_are_reported(
    known: ClipModel, tmp_path: Path, tiny: Tiny
) -> None:
    tensors = dict(known.model.state_dict())
    tensors["ln_final.weight"] = torch.full_like(tensors["ln_final.weight"], float("nan"))
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors has weights .* in ln_final\.weight"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'w.safetensors'}")
    for file, content in (("other.pt", tiny().model.state_dict()), ("list.pt", [1, 2]), ("empty.pt", {"epoch": 3})):
        torch.save(content, tmp_path / file)
        with pytest.raises(ModelError, match="does not fit Tiny-B-32"):
            load_clip(f"{ARCHITECTURE}:{tmp_path / file}")


def _openai_archive(clip: ClipModel, path: Path) -> None:
    """As OpenAI published its models: traced, in half precision, with three numbers as buffers and no mask."""
    model: Any = clip.model
    mask = model.attn_mask
    del model.attn_mask
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


def test_openais_archives_are_converted_once(
    known: ClipModel, named: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _openai_archive(known, tmp_path / "archive.pt")
    page = (Path(__file__).parents[3] / "docs/tuned-model.md").read_text("utf-8").partition("## OpenAI's own files")[2]
    with pytest.raises(ModelError, match=r"archive\.pt .*docs/tuned-model\.md"):
        load_clip(f"{ARCHITECTURE}:{tmp_path / 'archive.pt'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is leaving TorchScript
        exec(page.partition("```python\n")[2].partition("```")[0], {})
    named(ARCHITECTURE, {**known.model_cfg, "quick_gelu": True})
    loaded = load_clip(f"{ARCHITECTURE}:{tmp_path / 'base.pt'}")
    known.model.half().float()
    assert image_encoder_hash(loaded) == image_encoder_hash(known)


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


def test_what_references_mean(tmp_path: Path) -> None:
    for remote in ("ViT-B-32:laion2b_s34b_b79k", "hf-hub:org/name"):
        assert local_file(remote) is None and local_folder(remote) is None
    assert local_file("ViT-B-32:/data/w.pt") == ("ViT-B-32", Path("/data/w.pt"))
    assert local_file("ViT-B-32:w.safetensors") == ("ViT-B-32", Path("w.safetensors"))
    assert local_file(str(tmp_path)) is None
    for reference in ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai", "ViT-B-32:/data/w.pt", "hf://org/name"):
        check_reference(reference)
    assert place_free_name("ViT-B-32:/data/w.pt") == "ViT-B-32:local"
    assert place_free_name("local-dir:/data/m") == place_free_name("/data/m.pt") == "local"
    assert place_free_name("ViT-B-32:openai") == "ViT-B-32:openai"
    assert tokenizer_reference("hf-hub:org/name") == "hf-hub:org/name"
    assert tokenizer_reference("ViT-B-32:/data/w.pt") == tokenizer_reference("ViT-B-32:openai") == "ViT-B-32"
    assert tokenizer_reference(f"local-dir:{tmp_path}") == f"local-dir:{tmp_path}"
    assert model_files("ViT-B-32:openai") == [] and model_files("ViT-B-32:/d/w.pt") == [Path("/d/w.pt")]
    assert model_files(str(tmp_path)) == [tmp_path / "open_clip_config.json", tmp_path / WEIGHTS]


def test_the_tags_that_are_read_are_those_that_open_clip_has() -> None:
    table = Path(open_clip.__file__).with_name("pretrained.py").read_text()
    for architecture in open_clip.list_models():
        tags = set(open_clip.list_pretrained_tags_by_model(architecture))
        if read := set(pretrained_tags(table, architecture)):
            # Those with QuickGELU have some of the others' tags.
            assert tags <= read if architecture.endswith("-quickgelu") else tags == read
    assert len(pretrained_tags(table, "ViT-B-32")) > 20
    assert pretrained_tags("_PRETRAINED = load()", "ViT-B-32") == []
