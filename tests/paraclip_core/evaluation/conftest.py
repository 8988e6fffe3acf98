"""What benchmarks share: a small model."""

from copy import deepcopy

import pytest
import torch

from paraclip_core.clip.export import save_release
from paraclip_core.clip.model import ClipModel
from tests.kit.drawn_clip import drawn_clip
from tests.kit.encoders import TEXT, VISION


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipModel, str]:
    """A model, which nobody changes, and the folder of its release."""
    folder = tmp_path_factory.mktemp("small") / "model"
    clip = drawn_clip({"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT | {"layers": 1}})
    save_release(clip, folder, "card")
    return clip, str(folder)


@pytest.fixture(scope="session")
def models(small_model: tuple[ClipModel, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of that model and of another with the same image encoder."""
    clip, base = small_model
    tuned = deepcopy(clip)
    with torch.no_grad():
        torch.manual_seed(0)
        tuned.model.token_embedding.weight.add_(0.05 * torch.randn_like(clip.model.token_embedding.weight))  # pyright: ignore
    folder = tmp_path_factory.mktemp("models") / "tuned"
    save_release(tuned, folder, "card")
    return base, str(folder)
