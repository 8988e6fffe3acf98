"""Writing a model: open_clip's release, Hugging Face's ``CLIPModel`` and sentence-transformers' layout of it."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import TextTransformer, VisionTransformer

from paraclip_core.captions.tokens import load_byte_pairs
from paraclip_core.clip.hf_format import ACTIVATIONS, PILLOW_FILTERS, to_hf
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.reference import CONFIG, TEXT_CONFIG, WEIGHTS
from paraclip_core.clip.tokenizer import save_tokenizer
from paraclip_core.errors import ModelError
from paraclip_core.tensor_file import write_tensors

VISION_SIZES = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
TEXT_SIZES = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
FREE = {"norm_kwargs", "hf_tokenizer_name", "tokenizer_kwargs", "patch_dropout", "timm_model_pretrained"}
"""Options that change nothing, or that both libraries have."""
START, END = "<|startoftext|>", "<|endoftext|>"


def save_release(clip: ClipModel, folder: Path, card: str) -> None:
    """Write weights, configuration and model card, so that open_clip loads ``local-dir:FOLDER``.

    The same model gives the same bytes. Each file appears whole, the weights last.

    Args:
        clip: the model; it is written in fp32.
        folder: made if need be.
        card: the README.md, see :func:`paraclip_core.training.card.ReleaseCard`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} holds values that are not finite; the model in {folder} is not written")
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    config = {"model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg}
    _replace(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    _replace(folder / "README.md", card.encode())
    _save_text_files(clip, folder)
    write_tensors(tensors, folder / WEIGHTS[0], {"format": "pt"})


def _save_text_files(clip: ClipModel, folder: Path) -> None:
    """Write a tokenizer of the model's own, and a Hugging Face text tower's configuration: open_clip keeps its name."""
    text: Any = getattr(clip.model, "text", None)
    if isinstance(text, HFTextEncoder):
        stored: Any = text.config
        config: dict[str, Any] = dict(stored.to_dict())
        config.pop("_name_or_path", None)  # where it was loaded from
        _replace(folder / TEXT_CONFIG, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    if clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(clip, folder)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def hf_obstacle(clip: ClipModel) -> str | None:
    """What Hugging Face's ``CLIPModel`` lacks of the model; None where it has all."""
    model: Any = clip.model
    text = model if isinstance(model, open_clip.CLIP) else getattr(model, "text", None)
    if not isinstance(model.visual, VisionTransformer):
        name = clip.model_cfg["vision_cfg"].get("timm_model_name") or type(model.visual).__name__
        return f"its image tower is {name}, CLIPModel's is a ViT"
    if not isinstance(text, open_clip.CLIP | TextTransformer) or not clip.reads_clip_tokens:
        name = clip.model_cfg["text_cfg"].get("hf_model_name") or clip.model_cfg["text_cfg"].get("hf_tokenizer_name")
        return f"its text tower or tokenizer is {name}, CLIPModel's is CLIP's own"
    for part, kind, sizes in (("vision_cfg", CLIPVisionCfg, VISION_SIZES), ("text_cfg", CLIPTextCfg, TEXT_SIZES)):
        defaults = {field.name: field.default for field in fields(kind)}
        for name, value in clip.model_cfg[part].items():
            if name not in sizes | FREE and value != defaults.get(name):
                return f"CLIPModel has nothing like {part}.{name} = {value!r}"
    if clip.preprocess_cfg.get("resize_mode") not in ("shortest", "squash"):
        return f"CLIPProcessor has no resize_mode {clip.preprocess_cfg.get('resize_mode')!r}"
    return None


def save_hf(clip: ClipModel, folder: Path) -> None:
    """Write a folder that ``transformers.CLIPModel`` and ``CLIPProcessor`` load."""
    from transformers import CLIPImageProcessor, CLIPProcessor
    from transformers.utils.logging import disable_progress_bar

    obstacle = hf_obstacle(clip)
    if obstacle is not None:
        raise ModelError(
            f"{clip.reference} cannot be a Hugging Face CLIPModel: {obstacle}; export it as open_clip, or its text "
            "tower as onnx"
        )
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()  # drawn without a terminal, too
    _hf_model(clip).save_pretrained(folder)
    tokenizer = clip_tokenizer(clip)
    images = CLIPImageProcessor(**_image_processing(clip))
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    # Older versions look for each part's own file.
    images.save_pretrained(folder)


def save_sentence_transformers(clip: ClipModel, folder: Path) -> None:
    """Write a folder that ``SentenceTransformer`` loads, with texts and images in one space."""
    save_hf(clip, folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module], indent=2) + "\n", "utf-8")
    config = {"similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _hf_model(clip: ClipModel) -> Any:
    from transformers import CLIPConfig, CLIPModel

    vision, text = (clip.model_cfg[part] for part in ("vision_cfg", "text_cfg"))
    pairs, vision_width = load_byte_pairs(), vision.get("width", 768)
    text_config = {
        **_hf_tower(clip, text, text.get("width", 512)),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": clip.context_length,
        "vocab_size": text.get("vocab_size", 49408),
        "bos_token_id": pairs.start,
        "eos_token_id": pairs.end,
        "pad_token_id": pairs.end,
    }
    vision_config = {
        **_hf_tower(clip, vision, vision_width),
        "num_attention_heads": vision_width // vision.get("head_width", 64),
        "image_size": _square(vision.get("image_size", 224)),
        "patch_size": _square(vision.get("patch_size", 16)),
    }
    with torch.random.fork_rng(devices=[]):
        config = CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=clip.embed_dim)
        model: Any = CLIPModel(config)
    stored = {name: tensor.detach().cpu().float() for name, tensor in clip.model.state_dict().items()}
    stored["logit_scale"] = stored["logit_scale"].reshape(())
    stored.pop("logit_bias", None)  # cosines do not depend on it
    try:
        model.load_state_dict(to_hf(stored), strict=True)
    except RuntimeError as error:
        raise ModelError(f"the weights of {clip.reference} do not fit CLIPModel: {error}") from error
    return model.eval()


def _hf_tower(clip: ClipModel, tower: dict[str, Any], width: int) -> dict[str, Any]:
    """What the configurations of both towers have."""
    return {
        "hidden_size": width,
        "intermediate_size": round(width * tower.get("mlp_ratio", 4.0)),
        "num_hidden_layers": tower.get("layers", 12),
        "layer_norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
        "hidden_act": next(name for name, q in ACTIVATIONS.items() if q == bool(clip.model_cfg.get("quick_gelu"))),
        "projection_dim": clip.embed_dim,
    }


def clip_tokenizer(clip: ClipModel) -> Any:
    """CLIP's byte pairs as Hugging Face's tokenizer, which gives special tokens other names."""
    from transformers import CLIPTokenizer

    pairs = load_byte_pairs()
    names = {pairs.start: START, pairs.end: END}
    vocabulary = {names.get(number, symbol): number for symbol, number in pairs.ids.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs.merges, model_max_length=clip.context_length)  # pyright: ignore[reportArgumentType]


def _image_processing(clip: ClipModel) -> dict[str, Any]:
    preprocess = clip.preprocess_cfg
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    filters = {name: number for number, name in PILLOW_FILTERS.items()}
    crop = preprocess["resize_mode"] == "shortest"
    return {
        "size": {"shortest_edge": min(height, width)} if crop else {"height": height, "width": width},
        "crop_size": {"height": height, "width": width},
        "do_center_crop": crop,
        "resample": filters.get(preprocess["interpolation"], filters["bicubic"]),
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def _square(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])
