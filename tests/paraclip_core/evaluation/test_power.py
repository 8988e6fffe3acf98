"""The images that a gain needs, against draws and what runs measured."""

from __future__ import annotations

import numpy as np
import pytest

from paraclip_core.evaluation.power import GAIN, expected_half, images_needed


@pytest.mark.parametrize(("images", "half"), [(70, 4.0), (1000, 0.5)])
def test_a_gain_is_told_four_times_in_five_on_the_images_that_it_needs(images: int, half: float) -> None:
    needed = images_needed(images, half)
    rng, spread = np.random.default_rng(0), half / 1.96 * images**0.5
    gains = GAIN + spread / needed**0.5 * rng.standard_normal(20_000)
    assert np.mean(gains > 1.96 * spread / needed**0.5) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("images", "pairs", "seen"), [(70, 70, 4.0), (750, 750, 0.97), (1000, 10_000, 0.51)])
def test_the_interval_to_expect_is_that_of_runs_so_far(images: int, pairs: int, seen: float) -> None:
    """Those of docs/benchmarks.md."""
    assert expected_half(images, pairs) == pytest.approx(seen, rel=0.15)
