"""Image files to features, out of more archives than may be open at once."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image

from paraclip_core.clip.built_in import PREPROCESS, built_in_clip
from paraclip_core.clip.encode import image_transform
from paraclip_core.clip.featurize import Featurizer, ImageFile, folded
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.options import ModelOptions

SMALL = ModelOptions(text_width=64, text_layers=2, embed_dim=32)
Tiny = Callable[..., ClipModel]


def _tar(path: Path, color: int) -> None:
    picture = path.with_suffix(".png")
    Image.new("RGB", (9, 7), (color, 0, 0)).save(picture)
    with tarfile.open(path, "w") as tar:
        tar.add(picture, "one.png")


def _is_open(archive: ImageArchive) -> bool:
    try:
        archive.read("one.png")
    except ValueError:
        return False
    return True


def test_only_the_archives_of_the_list_are_open(tmp_path: Path, tiny: Callable[..., ClipModel]) -> None:
    for number in range(11):
        _tar(tmp_path / f"{number}.tar", 20 * number)
    opened: list[ImageArchive] = []

    def archive(name: str) -> ImageArchive:
        opened.append(ImageArchive(tmp_path / name))
        return opened[-1]

    def files(start: int, stop: int) -> list[ImageFile]:
        return [ImageFile(str(n), "one.png", f"{n}.tar") for n in range(start, stop)]

    with Featurizer(tiny(), archive, batch_size=2, workers=2) as featurizer:
        pixels = []
        for start in range(0, 10, 2):
            # A list ends in the archive that the next one begins with.
            features = featurizer.encode(files(start, start + 3))
            assert features.image_ids == [file.image_id for file in files(start, start + 3)] and not features.rejected
            assert [one.path.name for one in opened if _is_open(one)] == [f.archive for f in files(start, start + 3)]
            pixels += features.pixels
        assert len(opened) == 11, "none is opened twice"
        assert featurizer.encode(files(0, 1)).pixels == pixels[:1], "one that was closed"
    assert not any(map(_is_open, opened))


def test_folding_changes_nothing_but_rounding(tiny: Tiny) -> None:
    clip = built_in_clip(SMALL)
    before = image_encoder_hash(clip)
    encoder = folded(clip.visual, (224, 224))
    assert encoder is not clip.visual and image_encoder_hash(clip) == before
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(pixels), clip.visual(pixels), atol=1e-4, rtol=1e-3)
    assert folded(tiny().visual, (32, 32)) is not encoder
    plain = tiny().visual
    assert folded(plain, (32, 32)) is plain


def test_encoders_that_run_their_children_in_another_order_are_left_alone() -> None:
    class Crossed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
            torch.nn.init.uniform_(self.norm.running_var)  # type: ignore[arg-type]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(x).relu()).flatten(1)

    crossed = Crossed().eval()
    assert folded(crossed, (8, 8)) is crossed


def test_a_resnet_whose_image_size_is_one_number(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
    }
    model: Any = open_clip.CLIP(**deepcopy(config))
    clip = ClipModel(model.eval(), config, PREPROCESS | {"size": model.visual.image_size}, "resnet")
    assert clip.preprocess_cfg["size"] == 64 and clip.image_size == (64, 64)
    Image.new("RGB", (80, 70), (200, 30, 0)).save(tmp_path / "one.png")
    with Featurizer(clip, lambda _: ImageArchive(tmp_path), batch_size=2) as featurizer:
        features = featurizer.encode([ImageFile("one", "one.png", "folder")])
    pixels = image_transform(clip)(Image.open(tmp_path / "one.png"))
    with torch.no_grad():
        expected = model.encode_image(torch.as_tensor(pixels)[None], normalize=True)
    torch.testing.assert_close(torch.as_tensor(features.features[0]).float(), expected[0], atol=2e-3, rtol=0)
