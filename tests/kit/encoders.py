"""Small models with every kind of text encoder, and tokenizers for them, made offline."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from paraclip_core.clip.model import ClipModel
from tests.kit.drawn_clip import drawn

TEXTS = [
    "a dog runs on a beach",
    "two men",
    "A",
    "a much longer caption about a small red car that stands beside an old house & a tree, on a rainy day",
    "photo!!! of 1,000 “things”",
    "word " * 100,
    "a dog runs on the beach !!!",
]

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
SMALL = {"context_length": 32, "vocab_size": 400, "width": 64, "heads": 2, "layers": 2}
HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 400}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 400}
M2M = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 400, "max_position_embeddings": 96,
    "encoder_layerdrop": 0.0,  # or a layer is left out by chance in one forward pass of ten while it is trained
}  # fmt: skip


def _hf(name: str, pooler: str = "mean_pooler", **more: Any) -> dict[str, Any]:
    return {"text_cfg": {"hf_model_name": name, "hf_pooler_type": pooler, **more}}


def _coca(text: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    return {
        "text_cfg": {**text, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "vocab_size": vocabulary, "width": 64, "heads": 2, "layers": 1},
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "custom_text": True,
    }


@register_model
def vit_drawn_siglip(num_classes: int, global_pool: Any, **_: Any) -> VisionTransformer:
    """A small version of timm's ``vit_base_patch16_siglip_224``."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=num_classes, global_pool=global_pool, class_token=False)


def _siglip(name: str, tokenizer: str) -> dict[str, Any]:
    """A small version of open_clip's own configuration."""
    config: Any = open_clip.get_model_config(name)
    config["text_cfg"] |= {**SMALL, "hf_tokenizer_name": tokenizer}
    config["vision_cfg"] |= {"timm_model_name": "vit_drawn_siglip", "image_size": 32}
    return config | {"embed_dim": 32}


CLIPA = {**SMALL, "no_causal_mask": True, "pool_type": "last", "hf_tokenizer_name": "bert"}
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "clip": (False, {"text_cfg": TEXT}),
    "clip-quickgelu": (False, {"text_cfg": TEXT, "quick_gelu": True}),
    "clip-short": (False, {"text_cfg": {**TEXT, "context_length": 16}}),
    "eva": (False, {"text_cfg": TEXT, "custom_text": True}),
    "pe": (False, {"text_cfg": {**TEXT, "block_type": "custom", "scale_attn": True}, "custom_text": True}),
    "worldwide": (False, {"text_cfg": {**SMALL, "pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "roberta"}}),
    "eos-is-pad": (True, {"text_cfg": {**SMALL, "pool_type": "eos", "eos_id": 1, "hf_tokenizer_name": "siglip"}}),
    "coca": (True, _coca({**TEXT, "context_length": 76, "embed_cls": True}, 49408)),
    "roberta": (False, _hf("roberta")),
    "xlm-roberta": (False, _hf("xlm-roberta")),
    "bert": (False, _hf("bert", "cls_pooler")),
    "mt5": (False, _hf("mt5")),
    "nllb": (False, _hf("m2m_100", "cls_pooler", hf_proj_type="linear")),
    "coca-roberta": (False, _coca({"hf_model_name": "roberta", "hf_proj_type": "linear"}, 400)),
    "siglip": (True, _siglip("ViT-B-16-SigLIP", "siglip")),
    "siglip2": (True, _siglip("ViT-B-16-SigLIP2", "gemma")),
    "clipa": (True, {"text_cfg": {**CLIPA, "tokenizer_kwargs": {"strip_sep_token": True}}}),
    "mobileclip-s": (True, {"text_cfg": {**TEXT, "no_causal_mask": True}, "custom_text": True}),
}
"""Small architectures: whether the text encoder must see all padding, and the `model_cfg`."""


def model_of(kind: str, folder: Path) -> ClipModel:
    """A randomly initialised model; what its text encoder and tokenizer need is written below `folder`."""
    config: dict[str, Any] = {"embed_dim": 32, "vision_cfg": dict(VISION), **deepcopy(KINDS[kind][1])}
    text = config["text_cfg"]
    hf = text.get("hf_model_name")
    if hf:
        text["hf_model_name"] = str(_hf_config(hf, folder))
        text["hf_tokenizer_name"] = str(_tokenizer("bert" if hf == "bert" else "t5" if hf == "mt5" else hf, folder))
    elif "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = str(_tokenizer(text["hf_tokenizer_name"], folder))
    # Under a name that open_clip knows, so that the tokenizer is found by the configuration.
    open_clip.factory._MODEL_CONFIGS[f"encoder-{kind}"] = config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = _weighted(config)
    return ClipModel(model.eval(), config, json.loads(json.dumps(model.visual.preprocess_cfg)), f"encoder-{kind}:drawn")


def _weighted(config: dict[str, Any]) -> Any:
    model: Any = drawn(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Drawn here, because building leaves the random state as it was; and larger than at the start of training,
            # where every text is nearly the same.
            if not name.startswith(("visual.", "logit_")) and parameter.ndim > 1:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.3 if "embed" in name else 3 / parameter.shape[-1] ** 0.5)
                )
    return model


def _hf_config(name: str, folder: Path) -> Path:
    from transformers import AutoConfig

    sizes: dict[str, Any] = {"mt5": T5, "m2m_100": M2M}.get(name, {**HF, "max_position_embeddings": 96})
    special = {"bert": (0, 2), "mt5": (0, 1)}.get(name, (1, 2))
    config: Any = AutoConfig.for_model(name, **sizes, pad_token_id=special[0], eos_token_id=special[1])
    config.save_pretrained(folder / f"config-{name}")
    return folder / f"config-{name}"


def _tokenizer(name: str, folder: Path) -> Path:
    """Byte-level BPE with the special tokens of a family: where padding, start and end have their ids."""
    from transformers import PreTrainedTokenizerFast

    if name == "gemma":
        return _gemma(folder)
    start, pad, end, others = {
        "bert": ("[CLS]", "[PAD]", "[SEP]", ["[PAD]", "[CLS]", "[SEP]"]),
        "t5": (None, "<pad>", "</s>", ["<pad>", "</s>", "<unk>"]),
        "siglip": (None, "</s>", "</s>", ["<unk>", "</s>"]),
    }.get(name, ("<s>", "<pad>", "</s>", ["<s>", "<pad>", "</s>"]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=others, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    template = f"{start} $A {end}" if start else f"$A {end}"
    ids = [(token, tokenizer.token_to_id(token)) for token in {start, end} if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=sorted(ids))
    names = {"bos_token": start, "eos_token": end, "pad_token": pad, "cls_token": start, "sep_token": end}
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})
    fast.save_pretrained(folder / f"tokenizer-{name}")
    return folder / f"tokenizer-{name}"


def _gemma(folder: Path) -> Path:
    """SigLIP 2's: BPE with byte fallback and an end token."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    model = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    gemma: Any = GemmaTokenizer(
        vocab=model["vocab"], merges=merges, add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    gemma.save_pretrained(folder / "tokenizer-gemma")
    return folder / "tokenizer-gemma"
