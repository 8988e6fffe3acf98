"""What is measured on the images that training leaves out."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from paraclip_core.training.alpha import choose_alpha
from paraclip_core.training.validation import AO, JS, PARAPHRASE_RECALL, RECALL, ValidationSet, measure


@pytest.mark.parametrize(("images", "measured"), [(1, {RECALL}), (2, {RECALL, AO, JS, PARAPHRASE_RECALL})])
def test_one_image_tells_nothing_of_rankings(tiny: ModuleType, images: int, measured: set[str]) -> None:
    rows, features = tiny.tiny_rows(rows=4, images=images)
    texts = rows.texts
    held_out = ValidationSet(
        features, texts["caption"], rows.image_rows, texts["caption"], texts["paraphrase_2"], rows.image_rows
    )
    figures = measure(tiny.tiny_clip(), held_out)
    assert set(figures) == measured
    if images == 1:
        # Every α finds the one image, and that must not undo the training.
        assert choose_alpha([{"alpha": alpha, **figures} for alpha in np.linspace(0, 1, 3)], 0.5)["chosen"] == 1


def test_some_images_can_be_missed_however_few_there_are(tiny: ModuleType) -> None:
    for images in (2, 10, 19, 30):
        rows, features = tiny.tiny_rows(images=images)
        texts = rows.texts
        held_out = ValidationSet(
            features, texts["caption"], rows.image_rows, texts["caption"], texts["paraphrase_2"], rows.image_rows
        )
        figures = measure(tiny.tiny_clip(), held_out)
        assert set(figures) == {RECALL, AO, JS, PARAPHRASE_RECALL}
        assert 0 < figures[RECALL] < 75 and figures[JS] < 100
