"""Loading models: published formats, damaged and hostile files, names, the hub, activations."""

from __future__ import annotations

import argparse
import logging
import pickle
import warnings
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
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.reference import (
    check_reference,
    local_file,
    model_files,
    place_free_name,
    pretrained_tags,
    tokenizer_reference,
)
from paraclip_core.errors import ModelError

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
    weights.write_bytes(whole)
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items() if name != "ln_final.weight"}
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"ln_final\.weight"):
        load_clip(str(folder))
    weights.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_clip(str(folder))
    weights.write_bytes(whole)
    encoders = '{"model_cfg": {"embed_dim": 3, "vision_cfg": 1, "text_cfg": "x"}}'
    for damaged in ("{", "[]", '{"model_cfg": {"embed_dim": 3}}', encoders, "[" * 100_000):
        config.write_text(damaged)
        with pytest.raises(ModelError, match=r"open_clip_config\.json"):
            load_clip(str(folder))
    config.write_text(settings.replace('"width": 64', '"width": 128'))
    with pytest.raises(ModelError, match="does not fit"):
        load_clip(str(folder))
    with pytest.raises(ModelError, match="absent does not exist; expected built-in, a folder"):
        load_clip(str(tmp_path / "absent"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_names_and_activations_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ModelError, match="did you mean ViT-B-32"):
        load_clip("ViT-B32:openai")
    with pytest.raises(ModelError, match="laion400m"):
        load_clip("ViT-B-32:laion400m")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": False})
    with pytest.raises(ModelError, match="use ViT-B-32:openai"):
        load_clip("ViT-B-32-quickgelu:openai")


@pytest.mark.parametrize("reference", ["ViT-B-32:laion400m_e32", "hf-hub:laion/no-such-model"])
def test_offline_is_reported(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", offline)
    logging.getLogger().setLevel(logging.WARNING)
    with pytest.raises(ModelError, match=f"{reference}.*local-dir:FOLDER.*no route to host"):
        load_clip(reference)


def test_quick_gelu_is_turned_on_where_needed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    config: Any = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "laion400m_e32")
    assert clip.hub_name == config["hf_hub"].rstrip("/") and set(asked) == {clip.hub_name}
    assert clip.revision == "1a25a446"


ARCHITECTURE = "Tiny-B-32"


@pytest.fixture
def known(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> ClipModel:
    """A model whose architecture open_clip knows by name; every head is 64 wide, as in OpenAI's models."""
    vision = {"image_size": 32, "layers": 2, "patch_size": 16, "width": 64, "head_width": 64}
    clip = tiny({"width": 64, "heads": 1}, vision_cfg=vision)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, ARCHITECTURE, clip.model_cfg)
    return clip


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
    for file in ("open_clip.pt", "laclip.pt", "plain.bin", "old.pth", "weights.safetensors"):
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


def test_damaged_files_are_reported(known: ClipModel, tmp_path: Path) -> None:
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


def test_the_tags_that_are_read_are_those_that_open_clip_has() -> None:
    table = Path(open_clip.__file__).with_name("pretrained.py").read_text()
    for architecture in open_clip.list_models():
        tags = set(open_clip.list_pretrained_tags_by_model(architecture))
        if read := set(pretrained_tags(table, architecture)):
            # Those with QuickGELU have some of the others' tags.
            assert tags <= read if architecture.endswith("-quickgelu") else tags == read
    assert len(pretrained_tags(table, "ViT-B-32")) > 20
    assert pretrained_tags("_PRETRAINED = load()", "ViT-B-32") == []


def test_what_open_clip_has_is_taken(tmp_path: Path) -> None:
    for reference in ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai", f"ViT-B-32:{tmp_path}/weights.pt"):
        check_reference(reference)
