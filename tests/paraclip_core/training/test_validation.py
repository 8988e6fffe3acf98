"""What a text encoder finds on held-out images."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from paraclip_core.evaluation.intervals import Sample, delta_interval
from paraclip_core.training.validation import (
    AO,
    JS,
    OVERLAP,
    PARAPHRASE_RECALL,
    RECALL,
    ValidationSet,
    interval,
    measure,
    with_overlap,
)


@pytest.mark.parametrize("images", [1, 2, 10, 30])
def test_one_image_tells_nothing_of_rankings_and_of_some_any_can_be_missed(tiny: ModuleType, images: int) -> None:
    rows, own = tiny.tiny_rows(images=images)
    texts = rows.texts
    held_out = ValidationSet(
        own.features, texts["caption"], own.rows, texts["caption"], texts["paraphrase_2"], own.rows
    )
    clip = tiny.tiny_clip()
    base = measure(clip, held_out)
    if images == 1:
        assert set(base.figures) == {RECALL}
    else:
        assert set(base.figures) == {RECALL, AO, JS, PARAPHRASE_RECALL}
        assert 0 < base.figures[RECALL] < 75 and base.figures[JS] < 100
    for name, value in base.figures.items():
        assert base.parts[name].shape == (images,)
        assert base.parts[name].sum() == pytest.approx(value, rel=1e-5)
    assert with_overlap(base, base, held_out).figures[OVERLAP] == pytest.approx(100)
    other = measure(tiny.tiny_clip(seed=1), held_out)
    assert with_overlap(other, base, held_out).figures[OVERLAP] < 100 or images == 1


def test_queries_of_a_log_count_one_by_one_and_have_no_recall(tiny: ModuleType) -> None:
    rows, images = tiny.tiny_rows(images=30)
    first, second = rows.texts["caption"], rows.texts["paraphrase_2"]
    log = ValidationSet(images.features, first, first=first, second=second)
    clip = tiny.tiny_clip()
    found = with_overlap(measure(clip, log), measure(clip, log), log)
    assert sorted(found.figures) == sorted([AO, JS, OVERLAP])
    assert all(part.shape == (len(rows),) for part in found.parts.values())
    of_images = measure(clip, ValidationSet(images.features, first, images.rows, first, second, images.rows))
    assert found.figures[AO] == pytest.approx(of_images.figures[AO])


def test_the_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(300), 5)
    base = rng.normal(0.4, 0.2, 1500) + rng.normal(0, 0.1, 300)[clusters]
    tuned = base + rng.normal(0.02, 0.1, 1500) + rng.normal(0, 0.05, 300)[clusters]
    expected = delta_interval(Sample(base, clusters), Sample(tuned, clusters))
    difference = np.bincount(clusters, 100 * (tuned - base) / 1500).astype(np.float64)
    half, error = interval(difference)
    assert half == pytest.approx(100 * (expected.high - expected.low) / 2, rel=0.1)
    assert half == pytest.approx(1.96 * error, rel=1e-3)
