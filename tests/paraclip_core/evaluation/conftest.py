"""What benchmarks share: the deterministic encoder is importable, and a small model of the embedded kind."""

import sys
from pathlib import Path

import pytest

from paraclip_core.clip.embedded import embedded_clip
from paraclip_core.clip.export import save_release
from paraclip_core.clip.model import ClipModel
from paraclip_core.config import ModelOptions

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipModel, str]:
    """A model, which nobody changes, and the folder of its release."""
    folder = tmp_path_factory.mktemp("small") / "model"
    clip = embedded_clip(ModelOptions(text_width=64, text_layers=1, embed_dim=32))
    save_release(clip, folder, "card")
    return clip, str(folder)
