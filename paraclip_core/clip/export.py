"""Exports a model to open_clip, to Hugging Face's ``CLIPModel`` or ``SiglipModel``, and its text encoder to ONNX.

open_clip and transformers implement the same networks. They differ in names, in attention's input projections (one
matrix or three; SigLIP's pooling: two or one) and in the orientation of CLIP's projections into the shared space.
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
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from paraclip_core.clip.encode import TextEncoder, model_tokenizer, pad_token, save_tokenizer, text_encoder
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.reference import CONFIG, WEIGHTS
from paraclip_core.errors import ModelError
from paraclip_core.tensor_file import write_tensors
from paraclip_core.text_safety import one_line

TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
HF_NAMES = tuple(
    (re.compile(old), new)
    for old, new in {
        r"^visual\.class_embedding": "vision_model.embeddings.class_embedding",
        r"^visual\.(conv1|trunk\.patch_embed\.proj)\.": "vision_model.embeddings.patch_embedding.",
        r"^visual\.(positional_embedding|trunk\.pos_embed)": "vision_model.embeddings.position_embedding.weight",
        r"^visual\.ln_pre": "vision_model.pre_layrnorm",
        r"^visual\.(ln_post|trunk\.norm)\.": "vision_model.post_layernorm.",
        r"^visual\.(transformer\.resblocks|trunk\.blocks)": "vision_model.encoder.layers",
        r"^visual\.trunk\.attn_pool\.latent": "vision_model.head.probe",
        r"^visual\.trunk\.attn_pool\.k?[qv]\.": "vision_model.head.attention.in_proj_",
        r"^visual\.trunk\.attn_pool\.proj": "vision_model.head.attention.out_proj",
        r"^visual\.trunk\.attn_pool\.norm": "vision_model.head.layernorm",
        r"^visual\.trunk\.attn_pool\.mlp": "vision_model.head.mlp",
        r"^token_embedding": "text_model.embeddings.token_embedding",
        r"^positional_embedding": "text_model.embeddings.position_embedding.weight",
        r"^ln_final": "text_model.final_layer_norm",
        r"^text_projection\.": "text_model.head.",
        r"^transformer\.resblocks": "text_model.encoder.layers",
        r"\.attn\.proj\.": ".self_attn.out_proj.",
        r"\.attn\.(qkv\.)?": ".self_attn.",
        r"\.(?:ln_|norm)([12])": r".layer_norm\1",
        r"\.mlp\.c_fc": ".mlp.fc1",
        r"\.mlp\.c_proj": ".mlp.fc2",
    }.items()
)
"""Parts of open_clip's and timm's names and their replacements."""
PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_JOINED = re.compile(r"(?<=self_attn\.)(?:in_proj_)?(weight|bias)$")
START, END = "<|startoftext|>", "<|endoftext|>"
EXAMPLES = ("a photo of a dog", "two men on a boat", "Two MEN, a boat &  3 o'clock: “sunny”!")


def save_release(clip: ClipModel, folder: Path, card: str) -> None:
    """Write weights, configuration and model card, so that open_clip loads ``local-dir:FOLDER``.

    The same model gives the same bytes. `card` is the README.md; see
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
    """Write a folder that sentence-transformers and transformers' ``AutoModel`` and ``AutoProcessor`` can load."""
    import transformers
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # it is drawn even without a terminal
    set_verbosity_error()  # it warns about the token ids of its own defaults
    name = "SiglipModel" if hasattr(clip.visual, "trunk") else "CLIPModel"
    if (fit := clip.preprocess_cfg["resize_mode"]) not in ("shortest", "squash"):
        raise _refused(clip, name, f"its resize_mode is {fit}, which image processors do not have")
    if (tokenizer := hf_tokenizer(clip)) is None:
        raise _refused(clip, name, "transformers' tokenizers cannot produce its tokens")
    try:
        model = _hf_model(clip, name, tokenizer)
        different = _computed_otherwise(clip, model, tokenizer)
    except Exception as error:  # an encoder of another kind may lack anything
        raise _refused(clip, name, f"its encoders are built differently ({one_line(error)})") from error
    if different:
        raise _refused(clip, name, f"with the same weights the embeddings of {different} differ")
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(**_image_processing(clip))
    processor: Any = getattr(transformers, name.replace("Model", "Processor"))
    _save_hf_tokenizer(processor(image_processor=images, tokenizer=tokenizer), folder)
    # Older versions look for each part's own file.
    images.save_pretrained(folder)
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ways = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
    }
    how: dict[str, Any] = {"modality_config": ways, "module_output_name": "sentence_embedding"}
    if text_encoder(clip).padded:  # instead of to the longest text of a batch
        how["processing_kwargs"] = {"text": {"padding": "max_length"}}
    for name, facts in {"modules.json": [module], "sentence_bert_config.json": how}.items():
        (folder / name).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _refused(clip: ClipModel, name: str, why: str) -> ModelError:
    where = "export it as open_clip, or its text encoder as onnx"
    return ModelError(f"{clip.reference} cannot be exported as transformers' {name}: {why}; {where}")


def _hf_model(clip: ClipModel, name: str, tokenizer: Any) -> Any:
    """transformers' model with these weights."""
    import transformers

    visual: Any = clip.visual
    text: Any = getattr(clip.model, "text", clip.model)
    siglip = name == "SiglipModel"
    blocks = visual.trunk.blocks if siglip else visual.transformer.resblocks
    patches = visual.trunk.patch_embed.proj if siglip else visual.conv1
    projection = {"projection_size" if siglip else "projection_dim": clip.embed_dim}
    text_config = {
        **_hf_encoder(text.transformer.resblocks),
        **projection,
        "max_position_embeddings": clip.context_length,
        "vocab_size": text.token_embedding.num_embeddings,
        **{f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")},
    }
    vision_config = {**_hf_encoder(blocks), "image_size": visual.image_size[0], "patch_size": patches.kernel_size[0]}
    configuration: Any = getattr(transformers, name.replace("Model", "Config"))
    config = configuration(text_config=text_config, vision_config=vision_config, **({} if siglip else projection))
    with torch.random.fork_rng(devices=[]):
        model: Any = getattr(transformers, name)(config)
    stored = to_hf({name: tensor.detach().cpu().float() for name, tensor in clip.model.state_dict().items()})
    bias = stored.pop("logit_bias", torch.zeros(()))  # cosines do not depend on it
    stored |= {"logit_bias": bias.reshape(1), "logit_scale": stored["logit_scale"].reshape(1)} if siglip else {}
    model.load_state_dict(stored, strict=True)
    return model.eval()


@torch.no_grad()
def _computed_otherwise(clip: ClipModel, model: Any, tokenizer: Any) -> str:
    """Inputs whose embeddings differ between transformers' model and the original: texts, images, both or none."""
    original: Any = clip.model
    device, (height, width) = clip.device, clip.image_size
    pixels = torch.linspace(-2, 2, 3 * height * width).reshape(1, 3, height, width)
    inputs = tokenizer(list(EXAMPLES), padding="max_length", truncation=True, return_tensors="pt")
    theirs = model(**inputs, pixel_values=pixels)
    texts = original.encode_text(model_tokenizer(clip)(list(EXAMPLES)).to(device), normalize=True)
    images = original.encode_image(pixels.to(device), normalize=True)
    pairs = {"texts": (texts, theirs.text_embeds), "images": (images, theirs.image_embeds)}
    return " and ".join(what for what, (ours, its) in pairs.items() if not torch.allclose(ours.cpu(), its, atol=1e-4))


TANH = "gelu_pytorch_tanh"
ACTIVATIONS = {"QuickGELU()": "quick_gelu", "GELU(approximate='tanh')": TANH, "GELUTanh()": TANH}


def _hf_encoder(blocks: Any) -> dict[str, Any]:
    """The settings common to the configurations of all four encoders, read from their blocks."""
    first = blocks[0]
    hidden = next(module for module in first.mlp.modules() if isinstance(module, nn.Linear))
    activations = [ACTIVATIONS[repr(module)] for module in first.mlp.children() if repr(module) in ACTIVATIONS]
    return {
        "hidden_size": hidden.in_features,
        "intermediate_size": hidden.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "layer_norm_eps": next(module.eps for module in first.modules() if isinstance(module, nn.LayerNorm)),
        "hidden_act": next(iter(activations), "gelu"),
    }


def hf_tokenizer(clip: ClipModel) -> Any:
    """The model's tokenizer as a transformers tokenizer with open_clip's cleaning; None if its ids differ.

    The caller must unescape HTML entities and make ftfy's repairs other than curly quotes.
    """
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    ours, length, pad = model_tokenizer(clip), clip.context_length, pad_token(clip)
    own: Any = _clip_tokenizer() if clip.reads_clip_tokens else getattr(ours, "tokenizer", None)
    if not hasattr(own, "backend_tokenizer"):
        return None
    clean = (clip.model_cfg["text_cfg"].get("tokenizer_kwargs") or {}).get("clean", "whitespace")
    steps = [normalizers.NFC(), normalizers.Replace(Regex("[ʼ‘-‛]"), "'"), normalizers.Replace(Regex("[“-‟]"), '"')]
    if clean == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
    steps += [normalizers.Lowercase()] if clean in ("canonicalize", "lower") else []
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence(steps + ([backend.normalizer] if backend.normalizer else []))
    padded = text_encoder(clip).padded
    # A model-specific transformers class would replace this normalizer with its own.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        model_input_names=["input_ids"] if padded else ["input_ids", "attention_mask"],
        padding_side=own.padding_side,
        **own.special_tokens_map,
    )
    expected = ours(list(EXAMPLES))
    ids = tokenizer(list(EXAMPLES), padding="max_length", truncation=True, return_tensors="pt").input_ids
    same = (ids == expected) | ((expected == pad) & (not padded))
    tokenizer.backend_tokenizer.no_padding()
    if padded:
        # Libraries that pad to the longest text of a batch respect the multiple.
        padding = {"length": length, "pad_to_multiple_of": length, "pad_id": pad, "pad_token": own.pad_token}
        tokenizer.backend_tokenizer.enable_padding(**padding)
    return tokenizer if bool(same.all()) else None


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    ours = SimpleTokenizer()
    names = {ours.sot_token_id: START, ours.eot_token_id: END}  # which Hugging Face names differently
    vocabulary = {names.get(number, symbol): number for symbol, number in ours.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(ours.bpe_ranks))  # pyright: ignore[reportArgumentType]


def _save_hf_tokenizer(part: Any, folder: Path) -> None:
    part.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # The name that transformers has long used, instead of version 5's.
    config = json.loads(path.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _image_processing(clip: ClipModel) -> dict[str, Any]:
    preprocess, (height, width) = clip.preprocess_cfg, clip.image_size
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


def to_hf(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip state dict (``CLIP``, or ``CustomTextCLIP`` with its own text encoder) under transformers' names."""
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
        elif name in renamed:  # pooling's query and key-value projections, in this order
            renamed[name] = torch.cat([renamed[name], tensor])
        else:
            renamed[name] = tensor.squeeze(0) if stored == "visual.trunk.pos_embed" else tensor
    return renamed


ONNX_FILE = "text_model.onnx"
ONNX_TEXTS = "text_model.json"
NEEDED = ("onnx", "onnxscript")
PROTOBUF_BYTES = 1_900_000_000


def save_onnx(clip: ClipModel, folder: Path) -> None:
    """Write ``text_model.onnx`` and, next to it, a description of its input.

    The graph maps `input_ids`, int64 [batch, length], to `text_embeds`, float32 [batch, embed_dim] with rows of length
    1. Texts are padded to the longest of a batch, or to the model's context for encoders that see all padding.
    """
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        raise ModelError(f"ONNX needs {' and '.join(absent)}; run: pip install 'paraclip[export]'")
    folder.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = text_encoder(clip), hf_tokenizer(clip)
    shortest = clip.context_length if encoder.padded else 2
    ids = model_tokenizer(clip)(list(EXAMPLES))
    length: dict[int, Any] = {}
    if not encoder.padded:
        # Cut to their length: an example with the full context would fix the length in the graph.
        ids = ids[:, : int((ids != encoder.pad).sum(dim=1).max()) + 1].contiguous()
        length = {1: torch.export.Dim("length", min=shortest, max=clip.context_length)}
    _export(_Texts(clip.model, encoder), ids, folder / ONNX_FILE, length)
    facts = {
        "input": "input_ids",
        "output": "text_embeds",
        "context_length": clip.context_length,
        "shortest_length": shortest,
        "pad_token_id": encoder.pad,
        "tokenizer": "the tokenizer files in this folder" if tokenizer else "open_clip's",
    }
    (folder / ONNX_TEXTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    if tokenizer:
        _save_hf_tokenizer(tokenizer, folder)


class _Texts(nn.Module):
    def __init__(self, model: nn.Module, encoder: TextEncoder) -> None:
        super().__init__()
        self.model = model  # used by the encoder's forward; an attribute lets the exporter find its weights
        self._encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(self._encoder.forward(input_ids.long()).float(), dim=-1)


def _export(module: nn.Module, example: torch.Tensor, path: Path, dimensions: dict[int, Any]) -> None:
    """Write the encoder with a dynamic batch size and dynamic `dimensions`."""
    shape = {0: torch.export.Dim("batch", min=1), **dimensions}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(
                module.eval(),
                (example.to(next(module.parameters()).device),),
                path,
                input_names=["input_ids"],
                output_names=["text_embeds"],
                dynamic_shapes=(shape,),
                dynamo=True,
                # One file, unless it would exceed protobuf's size limit.
                external_data=sum(p.numel() * p.element_size() for p in module.parameters()) > PROTOBUF_BYTES,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # the exporter has many error types
        raise ModelError(f"torch cannot export this encoder to ONNX: {one_line(error)}") from error
