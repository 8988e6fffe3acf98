"""Writing a model: open_clip's release, and Hugging Face's ``CLIPModel``.

Both describe the same network. They differ in names, in attention's input projections (one matrix or three) and in the
orientation of the two projections into the shared space.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paraclip_core.captions.tokens import load_byte_pairs
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.reference import CONFIG, WEIGHTS
from paraclip_core.clip.tokenizer import save_tokenizer
from paraclip_core.errors import ModelError, one_line
from paraclip_core.tensor_file import write_tensors

NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
# Those of the image tower come first, as those of the text tower are their ends.
PREFIXES = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
}
PARTS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_JOINED = re.compile(r"(.*\.)attn\.in_proj_(weight|bias)")
NO_HF = "cannot be a Hugging Face CLIPModel; export it as open_clip, or its text tower as onnx"
RESIZE = ("shortest", "squash")
START_ID, END_ID = 49406, 49407
START, END = "<|startoftext|>", "<|endoftext|>"


def save_release(clip: ClipModel, folder: Path, card: str) -> None:
    """Write weights, configuration and model card, so that open_clip loads ``local-dir:FOLDER``.

    The same model gives the same bytes. Each file appears whole, the weights last.

    Args:
        clip: the model; it is written in fp32.
        folder: made if need be.
        card: the README.md, see :func:`paraclip_core.training.card.release_card`.
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
    if clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(clip, folder)
    write_tensors(tensors, folder / WEIGHTS[0], {"format": "pt"})


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_hf(clip: ClipModel, folder: Path) -> None:
    """Write a folder that ``transformers.CLIPModel`` and ``CLIPProcessor`` load."""
    from transformers import CLIPImageProcessor, CLIPProcessor
    from transformers.utils.logging import disable_progress_bar

    model, tokenizer = _hf_model(clip), clip_tokenizer(clip)
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()  # drawn without a terminal, too
    model.save_pretrained(folder)
    images = CLIPImageProcessor(**_image_processing(clip))
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    # Older versions look for each part's own file.
    images.save_pretrained(folder)


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
        same = clip.preprocess_cfg["resize_mode"] in RESIZE and _computes_alike(clip, model.eval())
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{clip.reference} {NO_HF}: {one_line(error)}") from error
    if not same:
        raise ModelError(f"{clip.reference} {NO_HF}: it computes something else with these weights, or sees images so")
    return model


@torch.no_grad()
def _computes_alike(clip: ClipModel, model: Any) -> bool:
    """Whether CLIPModel gives a text and an image the embeddings that the model gives them."""
    ids = torch.tensor([[START_ID, 320, 1929, 525, 518, 3940, END_ID] + [0] * (clip.context_length - 7)])
    size = clip.preprocess_cfg["size"]
    pixels = torch.randn(1, 3, *(size if isinstance(size, list) else (size, size)))
    original: Any = clip.model
    device = clip.device
    output = model(input_ids=ids, pixel_values=pixels)
    text = original.encode_text(ids.to(device), normalize=True).cpu()
    image = original.encode_image(pixels.to(device), normalize=True).cpu()
    return torch.allclose(text, output.text_embeds, atol=1e-4) and torch.allclose(image, output.image_embeds, atol=1e-4)


def _hf_tower(clip: ClipModel, tower: dict[str, Any], width: int) -> dict[str, Any]:
    """What the configurations of both towers have."""
    return {
        "hidden_size": width,
        "intermediate_size": round(width * tower.get("mlp_ratio", 4.0)),
        "num_hidden_layers": tower.get("layers", 12),
        "layer_norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
        "hidden_act": "quick_gelu" if clip.model_cfg.get("quick_gelu") else "gelu",
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


def to_hf(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip state dict (``CLIP``, or ``CustomTextCLIP`` with CLIP's text tower) under ``CLIPModel``'s names."""
    renamed: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix("text.")
        joined = _JOINED.fullmatch(name)
        if joined is not None:
            block = _renamed(joined[1], PREFIXES)
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{block}self_attn.{key}_proj.{joined[2]}"] = part.contiguous()
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            renamed[NAMES.get(name) or _renamed(_renamed(name, PREFIXES), PARTS)] = tensor
    return renamed


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        # Prefixes end with a dot and stand first, parts are found within.
        if old.startswith(".") and old in name:
            return name.replace(old, new, 1)
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
