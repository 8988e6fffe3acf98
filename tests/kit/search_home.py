"""A small version of what the search page needs: two models of one image encoder, pictures, and their index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from paraclip_core.clip.encode import encode_images
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from tests.kit.drawn_clip import drawn_clip

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COUNT = 40


def make_home(home: Path) -> None:
    """Write ``base``, ``tuned``, ``pictures``, ``index.npy`` and ``ids.txt`` into a folder."""
    torch.set_num_threads(1)
    base = load_clip(release(home / "base", 0.0))
    release(home / "tuned", 0.3)
    (home / "pictures").mkdir()
    rng, pictures = np.random.default_rng(0), []
    for number in range(COUNT):
        picture = Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8))
        picture.save(home / "pictures" / f"{number:02d} <b>.png")
        pictures.append(picture)
    np.save(home / "index.npy", encode_images(base, pictures))
    (home / "ids.txt").write_text("\n".join(f"{number:02d} <b>.png" for number in range(COUNT)))


def release(folder: Path, shift: float) -> str:
    """Write a model whose text encoder differs from the others' by `shift`."""
    save_release(drawn_clip(CONFIG, shift), folder, "")
    return str(folder)
