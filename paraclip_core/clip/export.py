"""Writing a model: open_clip's release, Hugging Face's ``CLIPModel``, and the text tower as ONNX.

open_clip and ``CLIPModel`` describe the same network. They differ in names, in attention's input projections (one
matrix or three) and in the orientation of the two projections into the shared space.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from paraclip_core.captions.tokens import load_byte_pairs
from paraclip_core.clip.encode import TextTower, model_tokenizer, save_tokenizer, text_tower
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.reference import CONFIG, WEIGHTS
from paraclip_core.errors import ModelError, one_line
from paraclip_core.tensor_file import write_tensors

TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
HF_NAMES = tuple(
    (re.compile(old), new)
    for old, new in {
        r"^visual\.class_embedding": "vision_model.embeddings.class_embedding",
        r"^visual\.conv1": "vision_model.embeddings.patch_embedding",
        r"^visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        r"^visual\.ln_pre": "vision_model.pre_layrnorm",
        r"^visual\.ln_post": "vision_model.post_layernorm",
        r"^visual\.transformer\.resblocks": "vision_model.encoder.layers",
        r"^token_embedding": "text_model.embeddings.token_embedding",
        r"^positional_embedding": "text_model.embeddings.position_embedding.weight",
        r"^ln_final": "text_model.final_layer_norm",
        r"^transformer\.resblocks": "text_model.encoder.layers",
        r"\.attn\.": ".self_attn.",
        r"\.ln_([12])": r".layer_norm\1",
        r"\.mlp\.c_fc": ".mlp.fc1",
        r"\.mlp\.c_proj": ".mlp.fc2",
    }.items()
)
"""Parts of open_clip's names and what takes their place."""
PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_JOINED = re.compile(r"in_proj_(weight|bias)$")
NO_HF = "cannot be a Hugging Face CLIPModel; export it as open_clip, or its text tower as onnx"
RESIZE = ("shortest", "squash")
START_ID, END_ID = 49406, 49407
START, END = "<|startoftext|>", "<|endoftext|>"


def save_release(clip: ClipModel, folder: Path, card: str) -> None:
    """Write weights, configuration and model card, so that open_clip loads ``local-dir:FOLDER``.

    The same model gives the same bytes. `card` is the README.md, see
    :func:`paraclip_core.training.card.release_card`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} holds values that are not finite; the model in {folder} is not written")
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    config = {"model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / "README.md").write_text(card, "utf-8")
    if clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(clip, folder)
    write_tensors(tensors, folder / WEIGHTS[0], {"format": "pt"})


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
        if name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.T.contiguous()
            continue
        for old, new in HF_NAMES:
            name = old.sub(new, name)
        if _JOINED.search(name):
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[_JOINED.sub(rf"{key}_proj.\1", name)] = part.contiguous()
        else:
            renamed[name] = tensor
    return renamed


ONNX_FILE = "text_model.onnx"
ONNX_TEXTS = "text_model.json"
CLIP_TOKENS = "CLIP's byte pairs"
NEEDED = ("onnx", "onnxscript")
PROTOBUF_BYTES = 1_900_000_000
EXAMPLES = ("a photo of a dog", "two men on a boat")


def save_onnx(clip: ClipModel, folder: Path) -> None:
    """Write ``text_model.onnx``, and beside it the facts of its input.

    The graph maps `input_ids`, int64 [batch, length], to `text_embeds`, float32 [batch, embed_dim] with rows of length
    1. Texts are padded to the longest of a batch, for towers that see all padding to the model's context.
    """
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        raise ModelError(f"ONNX needs {' and '.join(absent)}; run: pip install 'paraclip[export]'")
    folder.mkdir(parents=True, exist_ok=True)
    tower = text_tower(clip)
    shortest = clip.context_length if tower.padded else 2
    ids = model_tokenizer(clip)(list(EXAMPLES))
    length: dict[int, Any] = {}
    if not tower.padded:
        # Cut to their length: an example of the whole context would fix the length in the graph.
        ids = ids[:, : int((ids != tower.pad).sum(dim=1).max()) + 1].contiguous()
        length = {1: torch.export.Dim("length", min=shortest, max=clip.context_length)}
    _export(_Texts(clip.model, tower), ids, folder / ONNX_FILE, length)
    facts = {
        "input": "input_ids",
        "output": "text_embeds",
        "context_length": clip.context_length,
        "shortest_length": shortest,
        "pad_token_id": tower.pad,
        "tokenizer": CLIP_TOKENS if clip.reads_clip_tokens else "the tokenizer files in this folder",
    }
    (folder / ONNX_TEXTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    if clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(clip, folder)


class _Texts(nn.Module):
    def __init__(self, model: nn.Module, tower: TextTower) -> None:
        super().__init__()
        self.model = model  # what the tower's forward reads, so that the exporter finds its weights
        self._tower = tower

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(self._tower.forward(input_ids.long()).float(), dim=-1)


def _export(module: nn.Module, example: torch.Tensor, path: Path, dimensions: dict[int, Any]) -> None:
    """Write the tower; the batch and `dimensions` may have any size."""
    shape = {0: torch.export.Dim("batch", min=1), **dimensions}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            torch.onnx.export(
                module.eval(),
                (example.to(next(module.parameters()).device),),
                path,
                input_names=["input_ids"],
                output_names=["text_embeds"],
                dynamic_shapes=(shape,),
                dynamo=True,
                # One file, unless it would be larger than protobuf can be.
                external_data=sum(p.numel() * p.element_size() for p in module.parameters()) > PROTOBUF_BYTES,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # the exporter's many own
        raise ModelError(f"torch cannot export this tower to ONNX: {one_line(error)}") from error
