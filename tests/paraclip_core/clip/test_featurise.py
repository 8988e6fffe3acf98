"""Image files to features, out of more archives than may be open at once."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from paraclip_core.clip.featurise import Featuriser, ImageFile
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.models import ClipModel


def _tar(path: Path, colour: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 0, 0)).save(file, "PNG")
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("one.png")
        info.size = len(file.getvalue())
        tar.addfile(info, io.BytesIO(file.getvalue()))


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

    with Featuriser(tiny(), archive, batch_size=2, workers=2) as featuriser:
        pixels = []
        for start in range(0, 10, 2):
            # A list ends in the archive that the next one begins with.
            found = featuriser.encode(files(start, start + 3))
            assert found.image_ids == [file.image_id for file in files(start, start + 3)] and not found.rejected
            assert [one.path.name for one in opened if _is_open(one)] == [f.archive for f in files(start, start + 3)]
            pixels += found.pixels
        assert len(opened) == 11, "none is opened twice"
        assert featuriser.encode(files(0, 1)).pixels == pixels[:1], "one that was closed"
    assert not any(map(_is_open, opened))
